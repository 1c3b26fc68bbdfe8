// The response as prose, each token in the look of its level, with a card of its probabilities.

import { LEVELS, bars, element, level } from "./bars.js";

const LINE_TOKENS = 300;

const severity = (token) => LEVELS.indexOf(token.severity);

// Tokens that share a character make one group; elsewhere each token is its own.
function grouped(tokens, group, from) {
  const groups = [];
  for (let index = from; index < tokens.length; index += 1) {
    const begin = group ? group.end : 0;
    if (group && tokens[index].end === begin) {
      group.last = index;
    } else {
      group = { begin, end: tokens[index].end, first: index, last: index };
      groups.push(group);
    }
  }
  return groups;
}

export class TokenText {
  #groups = [];
  #tokens = [];
  #flag = null;

  constructor(container, card) {
    this.container = container;
    this.card = card;
    container.addEventListener("mouseover", ({ target }) => this.#show(this.#groupOf(target)));
    container.addEventListener("mouseleave", () => this.#show(this.#groupOf(document.activeElement)));
    container.addEventListener("focusin", ({ target }) => this.#enter(target));
    container.addEventListener("focusout", () => this.#show(null));
    container.addEventListener("keydown", (event) => this.#move(event));
    addEventListener("scroll", () => this.#show(null), { passive: true });
  }

  clear() {
    this.draw([], [], 0);
  }

  // `characters` are the code points that `tokens` end in; the first `kept` tokens are those of the last time.
  draw(characters, tokens, kept) {
    this.#tokens = tokens;
    while (this.#groups.length && this.#groups.at(-1).last >= kept) this.#undraw(this.#groups.pop());
    const before = this.#groups.at(-1);
    for (const group of grouped(tokens, before, before ? before.last + 1 : 0)) {
      group.text = characters.slice(group.begin, group.end).join("");
      group.span = this.#span(group);
      this.#line().append(group.span);
      this.#hold(group);
      this.#groups.push(group);
    }
    if (!this.container.querySelector("[tabindex='0']") && this.#groups.length) this.#groups[0].span.tabIndex = 0;
    if (!this.card.hidden && !this.container.contains(this.shown?.span)) this.#show(null);
  }

  // Where the text would be stopped: the flagged token, -1 for none, and where what is held back begins. Returns the
  // flagged token's text.
  mark(flag) {
    const moved = flag?.token !== this.#flag?.token || flag?.begin !== this.#flag?.begin;
    this.#flag = flag;
    if (moved) for (const group of this.#groups) this.#hold(group);
    return flag && flag.token >= 0 ? this.#groups.find(({ last }) => flag.token <= last).text : "";
  }

  #hold({ span, first, last }) {
    const flag = this.#flag;
    span.classList.toggle("held", flag !== null && last >= flag.begin);
    span.classList.toggle("flagged", flag !== null && first <= flag.token && flag.token <= last);
  }

  // Where the next token goes. The browser lays a whole box out anew for each token that it gets, so each line is a box
  // of its own, and one that does not end is broken.
  #line() {
    const last = this.#groups.at(-1);
    const line = last?.span.parentElement;
    if (line && !last.text.endsWith("\n") && line.childElementCount < LINE_TOKENS) return line;
    return this.container.appendChild(element("span", "line"));
  }

  #undraw({ span }) {
    const line = span.parentElement;
    span.remove();
    if (!line.firstChild) line.remove();
  }

  #span(group) {
    const [, gap, word] = group.text.match(/^(\s*)(.*)$/su);
    const span = element("span", "token");
    span.append(element("span", "gap", gap), element("span", "word", word));
    const worst = this.#worst(group);
    span.dataset.level = worst.severity;
    if (worst.severity !== "Safe") span.style.setProperty("--risk", 1 - worst.probabilities.severity.Safe);
    span.tabIndex = -1;
    return span;
  }

  #worst({ first, last }) {
    return this.#tokens.slice(first, last + 1).reduce((a, b) => (severity(b) > severity(a) ? b : a));
  }

  #groupOf(node) {
    const span = node.closest?.(".token");
    return this.#groups.find((group) => group.span === span) ?? null;
  }

  #enter(span) {
    this.container.querySelector("[tabindex='0']")?.setAttribute("tabindex", -1);
    span.tabIndex = 0;
    this.#show(this.#groupOf(span));
  }

  #move(event) {
    const here = this.#groups.findIndex(({ span }) => span === event.target);
    const end = this.#groups.length - 1;
    const places = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: end };
    if (event.key === "Escape") this.#show(null);
    if (!(event.key in places)) return;
    event.preventDefault();
    this.#groups[Math.min(end, Math.max(0, places[event.key]))].span.focus();
  }

  #show(group) {
    this.shown?.span.classList.remove("shown");
    this.shown?.span.removeAttribute("aria-describedby");
    this.shown = group;
    this.card.hidden = !group;
    if (!group) return;
    group.span.classList.add("shown");
    group.span.setAttribute("aria-describedby", this.card.id);
    this.card.replaceChildren(...this.#describe(group));
    this.#place(group.span.getClientRects()[0]);
  }

  #describe(group) {
    const token = this.#worst(group);
    const { severity: levels, categories } = token.probabilities;
    const many = group.last > group.first;
    const which = many ? `Tokens ${group.first + 1} to ${group.last + 1}, the worst of them` : `Token ${group.first + 1}`;
    const ranked = Object.entries(categories).sort(([, a], [, b]) => b - a);
    const counted = token.run > 0 ? "counts" : "does not count";
    const quoted = group.text.trim() ? `“\u2068${group.text.trim()}\u2069”` : "white space";
    const heading = level(token.severity);
    heading.append(element("span", "aside", `${counted} by this policy`));
    return [
      element("p", "aside", `${which} · ${quoted}`),
      heading,
      bars(LEVELS.map((name) => [name, levels[name]])),
      element("p", "aside", token.severity === "Safe" ? "If it were not safe" : "Category"),
      bars(ranked),
    ];
  }

  #place({ left, top, bottom }) {
    const { offsetWidth: width, offsetHeight: height } = this.card;
    const below = bottom + 8 + height < innerHeight || top < height + 16;
    this.card.style.left = `${Math.max(8, Math.min(left - 18, innerWidth - width - 12))}px`;
    this.card.style.top = `${below ? bottom + 8 : top - height - 8}px`;
  }
}
