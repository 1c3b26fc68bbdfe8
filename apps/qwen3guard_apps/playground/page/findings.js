// What is known of the conversation, and how the page shows it.

import { LEVELS, bars, element, level, percent } from "./bars.js";
import { TokenText } from "./tokens.js";

const by = (id) => document.getElementById(id);
const milliseconds = (value) => `${value.toFixed(value < 100 ? 1 : 0)} ms`;
const named = ({ severity, category, probabilities: { severity: levels } }) =>
  category ? `${severity}, ${category}` : `${percent(1 - levels.Safe)} risky`;
const rank = (sorted, share) => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];

export class Findings {
  #text = new TokenText(by("tokens"), by("card"));
  #cards = { "stream-prompt": null, "gen-prompt": null, "gen-response": null };
  #characters = [];
  #tokens = [];
  #took = [];
  #state = "idle";
  #words = null;
  #judged = false;

  constructor() {
    this.#drawAll();
  }

  // `words` are those of the policy. What is shown stays there without a decision where it is decided `again`.
  begin(words, again) {
    this.#words = words;
    this.#judged = false;
    this.#characters = [];
    if (!again) {
      [this.#tokens, this.#took] = [[], []];
      this.#text.clear();
    }
    by("error").hidden = true;
    for (const [place, found] of Object.entries(this.#cards)) {
      this.#set(place, again && found ? { ...found, flag: null } : null);
    }
    this.#now("running");
  }

  opened({ prompt, notice }) {
    by("notice").textContent = notice;
    by("notice").hidden = !notice;
    this.#set("stream-prompt", { ...prompt, named: [prompt.category] });
    this.#now("running");
  }

  judged({ kept, tokens, ms }, text) {
    this.#characters.push(...text);
    this.#tokens.splice(kept, Infinity, ...tokens);
    this.#text.draw(this.#characters, this.#tokens, kept);
    this.#state = "running";
    this.#judged = true;
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
    const words = [...found.categories, found.refusal === "Yes" && "a refusal"];
    if (found.answer_status !== "complete") words.push(`its answer is ${found.answer_status}`);
    this.#set(place, { ...found, named: words });
  }

  unjudged(place, { code, message }) {
    this.#set(place, { missing: code === "GUARD_NOT_SERVED" ? "Gen is not served here." : message });
  }

  #now(state) {
    this.#state = state;
    this.#decide();
  }

  #decide() {
    const token = this.#judged ? this.#tokens.findIndex(({ flag }) => flag) : -1;
    const flag = token < 0 ? null : { token, begin: token - this.#tokens[token].run + 1 };
    const prompt = this.#cards["stream-prompt"];
    const text = this.#text.mark(prompt?.flag ? { token, begin: 0 } : flag).trim();
    const headline = by("headline");
    delete headline.dataset.level;
    if (prompt?.flag) {
      const also = flag ? ` By itself, the response is flagged at token ${token + 1}.` : "";
      headline.dataset.level = prompt.severity;
      this.#say("⚑ Stopped at the prompt", `${named(prompt)}. An application shows nothing of a response.${also}`);
    } else if (flag) {
      headline.dataset.level = this.#tokens[token].severity;
      this.#say(
        `⚑ Flagged at token ${token + 1}${text && `, “\u2068${text}\u2069”`}`,
        `${named(this.#tokens[token])}. ${this.#held(flag)}`,
      );
    } else {
      if (this.#state === "finished") headline.dataset.level = "Safe";
      this.#say(...this.#unflagged());
    }
  }

  #held({ token, begin }) {
    const row = token - begin + 1;
    return row === 1 ? "Held back from there on." : `${row} tokens in a row, held back from token ${begin + 1} on.`;
  }

  #unflagged() {
    const { debounce, counted } = this.#words ?? {};
    const row = debounce === 1 ? "a token" : `${debounce} tokens in a row`;
    const are = debounce === 1 ? "is" : "are";
    return {
      idle: ["Nothing judged yet", "Write a prompt and a response, then press Run (Ctrl+Enter)."],
      running: ["Listening …", this.#words ? `A flag needs ${row} that ${are} ${counted}.` : "The server’s own policy decides."],
      waiting: ["Waiting for the guard …", "It has not answered for a while; it may be starting again."],
      finished: [
        "Response not flagged",
        this.#words ? `No ${debounce === 1 ? "token" : row} ${are} ${counted}.` : "By the server’s own policy.",
      ],
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
      const decision = found.flag === null ? "…" : found.flag ? "Flagged" : "Passes";
      content.push(level(found.severity), element("p", "aside", [decision, ...found.named].filter(Boolean).join(" · ")));
      content.push(bars(LEVELS.map((name) => [name, found.probabilities.severity[name]])));
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
