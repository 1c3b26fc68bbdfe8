// The page: what is typed goes to the guard with the policy, and what the guard says and decides is shown.

import { element } from "./bars.js";
import { EXAMPLES } from "./examples.js";
import { GuardError, Stopped, Stream, classify } from "./guard.js";
import { Findings } from "./findings.js";
import { PolicyControls } from "./policy.js";

const SLOW_MS = 2000;
const PAUSE_MS = 800;
const by = (id) => document.getElementById(id);
const prompt = by("prompt");
const response = by("response");
const live = by("live");
const findings = new Findings();
const controls = new PolicyControls(decideAgain);

let shown = null; // what is on the page: a prompt, the words of a response, how many were sent, whether it was stopped
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

async function begin(question, again = false) {
  stop();
  const { policy, words: counted } = controls;
  findings.begin(counted, again);
  const mine = (stream = new Stream());
  judging = new AbortController();
  judge("gen-prompt", question, null, judging.signal);
  findings.opened(await patiently(mine.open(question, policy)));
  return mine;
}

async function step(mine, text) {
  const answer = await patiently(text === null ? mine.finish() : mine.step(text));
  if (mine === stream) findings.judged(answer, text ?? "");
}

// Judges a response word by word; what was sent before is sent `again` in one piece.
async function run(asked, again = false) {
  shown = asked;
  const gap = Number(by("pace").value) && 1000 / Number(by("pace").value);
  await failing(async () => {
    const opening = begin(asked.prompt, again);
    showRunning(true);
    const mine = await opening;
    const { signal } = judging;
    const sent = asked.words.slice(0, asked.sent).join("");
    if (sent) await step(mine, sent);
    let due = performance.now();
    while (!asked.stopped && asked.sent < asked.words.length) {
      await step(mine, asked.words[asked.sent]);
      asked.sent += 1;
      due = Math.max(due + gap, performance.now() - gap);
      await sleep(due - performance.now());
      if (mine !== stream) return;
    }
    if (asked.stopped) {
      mine.stop();
      findings.stopped();
    } else {
      await step(mine, null);
      findings.finished();
    }
    stream = null;
    showRunning(false);
    await judge("gen-response", asked.prompt, asked.words.slice(0, asked.sent).join(""), signal);
  });
}

function runAll() {
  run({ prompt: prompt.value, words: words(response.value), sent: 0, stopped: false });
}

// A session keeps its policy, so another policy is another stream, with everything that was judged by the former one.
function decideAgain() {
  if (live.checked) follow();
  else if (shown) run(shown, true);
}

// Sends what has been typed at the end; a change anywhere else begins the stream again.
async function follow() {
  if (typed?.busy) return;
  await failing(async () => {
    for (;;) {
      const text = response.value;
      const policy = JSON.stringify(controls.policy);
      const same = typed && stream && typed.prompt === prompt.value && text.startsWith(typed.text);
      const goesOn = same && typed.policy === policy;
      if (goesOn && text === typed.text) break;
      if (!goesOn) {
        const asked = { prompt: prompt.value, policy, text: "", busy: true };
        const opening = begin(asked.prompt, same);
        typed = asked;
        await opening;
      }
      typed.busy = true;
      const piece = beginning(text.slice(typed.text.length));
      if (piece) await step(stream, piece);
      typed.text += piece;
      shown = { prompt: typed.prompt, words: [typed.text], sent: 1, stopped: true };
    }
  });
  if (!typed) return;
  typed.busy = false;
  clearTimeout(pause);
  pause = setTimeout(() => judge("gen-response", prompt.value, response.value, judging?.signal), PAUSE_MS);
}

async function judge(place, question, answer, signal) {
  if (place === "gen-response" && !answer) return;
  try {
    findings.gen(place, await classify(question, answer, controls.policy, signal));
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
  runAll();
});
by("stop").addEventListener("click", () => {
  stop();
  if (shown) shown.stopped = true;
  findings.stopped();
});
for (const field of [prompt, response]) {
  field.addEventListener("input", () => live.checked && follow());
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) runAll();
  });
}
live.addEventListener("change", () => (live.checked ? follow() : stop()));

for (const [name, texts] of Object.entries(EXAMPLES)) {
  const button = element("button", "", name);
  button.type = "button";
  button.addEventListener("click", () => {
    prompt.value = texts.prompt;
    response.value = texts.response;
    runAll();
  });
  document.querySelector(".examples").append(button);
}
[prompt.value, response.value] = Object.values(EXAMPLES["Spy film"]);
fetch("/about").then(async (reply) => {
  const { guard, categories } = await reply.json();
  by("server").textContent = `guard at ${guard}`;
  controls.list(categories);
});
