// What is known of the conversation, and how the page shows it.

import { bars, element, level } from "./bars.js";
import { LEVELS, firstFlag } from "./rule.js";
import { TokenText } from "./tokens.js";

const by = (id) => document.getElementById(id);
const milliseconds = (value) => `${value.toFixed(value < 100 ? 1 : 0)} ms`;
const rank = (sorted, share) => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];

export class Findings {
  #text = new TokenText(by("tokens"), by("card"));
  #cards = { "stream-prompt": null, "gen-prompt": null, "gen-response": null };
  #characters = [];
  #tokens = [];
  #took = [];
  #state = "idle";

  constructor() {
    document.querySelector(".policy").addEventListener("input", () => {
      this.#decide();
      this.#drawAll();
    });
    this.#drawAll();
  }

  get #policy() {
    const debounce = by("debounce");
    const strict = document.querySelector("[name='mode']:checked").value === "strict";
    return { strict, debounce: debounce.validity.valid && debounce.value ? Number(debounce.value) : 2 };
  }

  begin() {
    [this.#characters, this.#tokens, this.#took] = [[], [], []];
    this.#text.clear();
    by("error").hidden = true;
    for (const place of Object.keys(this.#cards)) this.#set(place, null);
    this.#now("running");
  }

  opened({ prompt, notice }) {
    by("notice").textContent = notice;
    by("notice").hidden = !notice;
    this.#set("stream-prompt", { ...prompt, named: [prompt.category], probabilities: prompt.probabilities.severity });
    this.#now("running");
  }

  judged({ kept, tokens, ms }, text) {
    this.#characters.push(...text);
    this.#tokens.splice(kept, Infinity, ...tokens);
    this.#text.draw(this.#characters, this.#tokens, kept);
    this.#state = "running";
    this.#measure(ms);
    this.#decide();
  }

  finished() {
    this.#now("finished");
  }

  stopped() {
    this.#now("stopped");
  }

  waiting() {
    this.#now("waiting");
  }

  failed({ message }) {
    by("error").textContent = message;
    by("error").hidden = false;
    this.#now("failed");
  }

  gen(place, found) {
    const named = [...found.categories, found.refusal === "Yes" && "a refusal"];
    if (found.answer_status !== "complete") named.push(`its answer is ${found.answer_status}`);
    this.#set(place, { ...found, named, probabilities: found.probabilities.severity });
  }

  unjudged(place, { code, message }) {
    this.#set(place, { missing: code === "GUARD_NOT_SERVED" ? "Gen is not served here." : message });
  }

  #now(state) {
    this.#state = state;
    this.#decide();
  }

  #decide() {
    const { strict, debounce } = this.#policy;
    const flag = firstFlag(this.#tokens.map(({ severity }) => severity), strict, debounce);
    const text = this.#text.mark(flag, strict).trim();
    const headline = by("headline");
    delete headline.dataset.level;
    if (flag) {
      const { severity, category } = this.#tokens[flag.token];
      headline.dataset.level = severity;
      this.#say(
        `⚑ Flagged at token ${flag.token + 1}${text && `, “\u2068${text}\u2069”`}`,
        `${category ? `${severity}, ${category}` : severity}. ${this.#held(flag, debounce)}`,
      );
    } else {
      if (this.#state === "finished") headline.dataset.level = "Safe";
      this.#say(...this.#unflagged(strict, debounce));
    }
  }

  #held({ begin }, debounce) {
    return debounce === 1 ? "Held back from there on." : `${debounce} tokens in a row, held back from token ${begin + 1} on.`;
  }

  #unflagged(strict, debounce) {
    const row = debounce === 1 ? "a token" : `${debounce} tokens in a row`;
    const counted = strict ? "Controversial or Unsafe" : "Unsafe";
    const asked = this.#cards["stream-prompt"];
    const prompt = asked && (strict ? asked.strict : asked.loose) ? " But the prompt is flagged." : "";
    return {
      idle: ["Nothing judged yet", "Write a prompt and a response, then press Run (Ctrl+Enter)."],
      running: ["Listening …", `A flag needs ${row} that ${debounce === 1 ? "is" : "are"} ${counted}.`],
      waiting: ["Waiting for the guard …", "It has not answered for a while; it may be starting again."],
      finished: ["Response not flagged", `No ${debounce === 1 ? "token" : row} ${debounce === 1 ? "is" : "are"} ${counted}.${prompt}`],
      stopped: ["Stopped", "Not flagged up to here."],
      failed: ["Not judged to the end", "Press Run to try again."],
    }[this.#state];
  }

  #say(headline, reason) {
    if (by("headline").textContent !== headline) by("headline").textContent = headline;
    by("reason").textContent = reason;
  }

  #set(place, found) {
    this.#cards[place] = found;
    this.#draw(place);
  }

  #drawAll() {
    for (const place of Object.keys(this.#cards)) this.#draw(place);
  }

  #draw(place) {
    const found = this.#cards[place];
    const card = by(place);
    const content = [card.querySelector("h3")];
    if (!found || found.missing) {
      content.push(element("p", "level", "–"), element("p", "aside", found?.missing ?? ""));
      content.push(bars(LEVELS.map((name) => [name, null])));
    } else {
      const { strict } = this.#policy;
      const decision = (strict ? found.strict : found.loose) ? "Flagged" : "Passes";
      const named = found.named.filter(Boolean);
      content.push(level(found.severity), element("p", "aside", [decision, ...named].join(" · ")));
      content.push(bars(LEVELS.map((name) => [name, found.probabilities[name]])));
    }
    card.replaceChildren(...content);
  }

  #measure(ms) {
    this.#took.splice(this.#took.findLastIndex((less) => less <= ms) + 1, 0, ms);
    by("last").textContent = milliseconds(ms);
    by("p50").textContent = milliseconds(rank(this.#took, 0.5));
    by("p95").textContent = milliseconds(rank(this.#took, 0.95));
    by("steps").textContent = this.#took.length;
    by("count").textContent = this.#tokens.length;
  }
}
