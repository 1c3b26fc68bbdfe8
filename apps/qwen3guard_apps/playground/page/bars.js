// Small pieces of the page. Whatever is text goes in as text, never as HTML.

export const LEVELS = ["Safe", "Controversial", "Unsafe"];

export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

export const percent = (share) => `${(100 * share).toFixed(1)}%`;

// Probabilities by name, in the order given; null where there is none yet.
export function bars(probabilities) {
  const list = element("dl", "bars");
  for (const [name, share] of probabilities) {
    const bar = element("dd", "bar");
    bar.style.setProperty("--share", share ?? 0);
    bar.dataset.level = name;
    list.append(element("dt", "", name), bar, element("dd", "share", share === null ? "–" : percent(share)));
  }
  return list;
}

export function level(name) {
  const line = element("p", "level", name);
  line.dataset.level = name;
  return line;
}
