// The decision over a stream, as the guard makes it: which token is flagged, from the levels up to it.

export const LEVELS = ["Safe", "Controversial", "Unsafe"];

export function counts(level, strict) {
  return level === "Unsafe" || (strict && level === "Controversial");
}

// The first token that is the last of `debounce` in a row that count, and where that row begins; null if there is none.
export function firstFlag(levels, strict, debounce) {
  let run = 0;
  for (let index = 0; index < levels.length; index += 1) {
    run = counts(levels[index], strict) ? run + 1 : 0;
    if (run === debounce) return { token: index, begin: index - debounce + 1 };
  }
  return null;
}
