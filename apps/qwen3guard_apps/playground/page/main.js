// The page: what is typed goes to the guard, what the guard says is shown. The decision is made here, by the rule.

import { element } from "./bars.js";
import { EXAMPLES } from "./examples.js";
import { GuardError, Stopped, Stream, classify } from "./guard.js";
import { Findings } from "./findings.js";

const SLOW_MS = 2000;
const PAUSE_MS = 800;
const by = (id) => document.getElementById(id);
const prompt = by("prompt");
const response = by("response");
const live = by("live");
const findings = new Findings();

let stream = null;
let judging = null;
let typed = null;
let pause = 0;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const words = (text) => text.match(/\s{0,24}\S{1,24}|\s{1,24}/gu) ?? [];
const beginning = (text) => text.match(/^.{0,500}/su)[0];

function stop() {
  stream?.stop();
  judging?.abort();
  stream = judging = typed = null;
  clearTimeout(pause);
  showRunning(false);
}

function showRunning(running) {
  const moved = document.activeElement === by(running ? "run" : "stop");
  by("run").hidden = running;
  by("stop").hidden = !running;
  if (moved) by(running ? "stop" : "run").focus();
}

async function begin() {
  stop();
  findings.begin();
  const mine = (stream = new Stream());
  judging = new AbortController();
  judge("gen-prompt", prompt.value, null, judging.signal);
  findings.opened(await patiently(mine.open(prompt.value)));
  return mine;
}

async function step(mine, text) {
  const answer = await patiently(text === null ? mine.finish() : mine.step(text));
  if (mine === stream) findings.judged(answer, text ?? "");
}

async function run() {
  const text = response.value;
  const gap = Number(by("pace").value) && 1000 / Number(by("pace").value);
  await failing(async () => {
    const opening = begin();
    showRunning(true);
    const mine = await opening;
    const signal = judging.signal;
    let due = performance.now();
    for (const word of words(text)) {
      await step(mine, word);
      due = Math.max(due + gap, performance.now() - gap);
      await sleep(due - performance.now());
      if (mine !== stream) return;
    }
    await step(mine, null);
    findings.finished();
    stream = null;
    showRunning(false);
    if (text) await judge("gen-response", prompt.value, text, signal);
  });
}

// Sends what has been typed at the end; a change anywhere else begins the stream again.
async function follow() {
  clearTimeout(pause);
  pause = setTimeout(() => judge("gen-response", prompt.value, response.value, judging?.signal), PAUSE_MS);
  if (typed?.busy) return;
  await failing(async () => {
    for (;;) {
      const text = response.value;
      const goesOn = typed && stream && typed.prompt === prompt.value && text.startsWith(typed.text);
      if (goesOn && text === typed.text) break;
      if (!goesOn) {
        const asked = (typed = { prompt: prompt.value, text: "", busy: true });
        const opening = begin();
        typed = asked;
        await opening;
      }
      typed.busy = true;
      const piece = beginning(text.slice(typed.text.length));
      if (piece) await step(stream, piece);
      typed.text += piece;
    }
  });
  if (typed) typed.busy = false;
}

async function judge(place, question, answer, signal) {
  if (place === "gen-response" && !answer) return;
  try {
    findings.gen(place, await classify(question, answer, signal));
  } catch (error) {
    if (error instanceof GuardError) findings.unjudged(place, error);
    else if (!(error instanceof Stopped)) throw error;
  }
}

async function failing(work) {
  try {
    await work();
  } catch (error) {
    if (error instanceof Stopped) return;
    if (!(error instanceof GuardError)) throw error;
    stop();
    findings.failed(error);
  }
}

async function patiently(answer) {
  const slow = setTimeout(() => findings.waiting(), SLOW_MS);
  try {
    return await answer;
  } finally {
    clearTimeout(slow);
  }
}

by("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
by("stop").addEventListener("click", () => {
  stop();
  findings.stopped();
});
for (const field of [prompt, response]) {
  field.addEventListener("input", () => live.checked && follow());
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  });
}
live.addEventListener("change", () => (live.checked ? follow() : stop()));

for (const [name, texts] of Object.entries(EXAMPLES)) {
  const button = element("button", "", name);
  button.type = "button";
  button.addEventListener("click", () => {
    prompt.value = texts.prompt;
    response.value = texts.response;
    run();
  });
  document.querySelector(".examples").append(button);
}
[prompt.value, response.value] = Object.values(EXAMPLES["Spy film"]);
fetch("/about").then(async (reply) => {
  by("server").textContent = `guard at ${(await reply.json()).guard}`;
});
