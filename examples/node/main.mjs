// Judges a conversation, or a response that arrives on standard input, and prints lines of JSON.
//
//     node main.mjs classify --prompt "How do I bake bread?" [--response TEXT | --messages JSON]
//     node main.mjs stream --prompt "How do I bake bread?" < response.txt
//
// A failure is one sentence with its code on standard error, and exit status 1; with --exit-code, what is unsafe is
// exit status 10.

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { Guard, GuardError } from "./guard.mjs";

const UNSAFE_STATUS = 10;
const OPTIONS = {
  url: { type: "string", default: "127.0.0.1:8001" },
  timeout: { type: "string", default: "30" },
  "tls-ca": { type: "string" },
  prompt: { type: "string" },
  response: { type: "string" },
  messages: { type: "string" },
  strict: { type: "boolean" },
  debounce: { type: "string" },
  "exit-code": { type: "boolean", default: false },
};

const say = (found) => process.stdout.write(`${JSON.stringify(found)}\n`);

function conversation({ prompt, response, messages }) {
  if ((prompt === undefined) === (messages === undefined)) {
    throw new GuardError("INVALID_REQUEST", "Give either --prompt or --messages.");
  }
  return { prompt, response, messages }; // as they were written: the guard reads them, and refuses what is not JSON
}

function number(name, text) {
  const value = Number(text);
  if (!(value > 0)) throw new GuardError("INVALID_REQUEST", `--${name} must be a number above 0.`);
  return value;
}

async function classify(guard, options) {
  const found = await guard.classify(conversation(options));
  say(found);
  return found.unsafe;
}

async function stream(guard, options) {
  const { strict, debounce } = options;
  const policy = { strict, debounce: debounce === undefined ? undefined : number("debounce", debounce) };
  const stream = await guard.stream(conversation(options), policy);
  let flagged = stream.prompt.flag;
  const show = (tokens) => {
    tokens.forEach(say);
    flagged ||= tokens.some((token) => token.flag);
  };
  try {
    say({ prompt: stream.prompt, notice: stream.notice });
    const decoder = new TextDecoder("utf-8", { fatal: true });
    for await (const bytes of process.stdin) {
      const piece = text(decoder, bytes, { stream: true });
      if (piece) show(await stream.step(piece));
    }
    text(decoder, new Uint8Array());
    show(await stream.finish());
  } catch (error) {
    await stream.end();
    throw error;
  }
  return flagged;
}

function text(decoder, bytes, options) {
  try {
    return decoder.decode(bytes, options);
  } catch {
    throw new GuardError("INVALID_ENCODING", "Standard input is not valid UTF-8.");
  }
}

async function main() {
  const { values: options, positionals } = parseArgs({ options: OPTIONS, allowPositionals: true });
  const verb = { classify, stream }[positionals[0]];
  if (!verb || positionals.length !== 1) throw new GuardError("INVALID_REQUEST", "Give one verb: classify or stream.");
  const tls = options["tls-ca"] ? readFileSync(options["tls-ca"]) : null;
  const token = process.env.QWEN3GUARD_TOKEN ?? null;
  const guard = new Guard(options.url, { timeoutMs: 1000 * number("timeout", options.timeout), tls, token });
  const unsafe = await verb(guard, options);
  guard.close();
  return unsafe && options["exit-code"] ? UNSAFE_STATUS : 0;
}

main().then(
  (status) => process.exit(status),
  (error) => {
    process.stderr.write(`${error.code ?? "INTERNAL"}: ${error.message}\n`);
    process.exit(1);
  },
);
