// The policy that the controls ask for. The guard decides by it, and refuses what is no policy.

import { element } from "./bars.js";

const by = (id) => document.getElementById(id);
const number = ({ value, valueAsNumber }) => (value === "" ? null : valueAsNumber);

export class PolicyControls {
  #rows = [];

  // `changed` is called whenever the policy is another one.
  constructor(changed) {
    document.querySelector(".decision").addEventListener("input", () => {
      this.#show();
      changed();
    });
    this.#show();
  }

  // `names` are the categories that there are.
  list(names) {
    for (const name of names) {
      const [row, label] = [element("li"), element("label", "inline")];
      const counts = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
      const least = { type: "number", min: 0, max: 1, step: 0.01, ariaLabel: `Threshold of ${name}` };
      const threshold = Object.assign(document.createElement("input"), least);
      label.append(counts, name);
      row.append(label, threshold);
      by("categories").append(row);
      this.#rows.push({ name, counts, threshold });
    }
    this.#show();
  }

  get #mode() {
    return document.querySelector("[name='mode']:checked").value;
  }

  // The categories that count; null for all of them.
  get #blocked() {
    const counted = this.#rows.filter(({ counts }) => counts.checked);
    return counted.length < this.#rows.length ? counted.map(({ name }) => name) : null;
  }

  // As the playground's server takes it; null is the guard's own policy.
  get policy() {
    if (this.#mode === "server") return null;
    const own = this.#rows.filter(({ threshold }) => threshold.value !== "");
    const categories = Object.fromEntries(own.map(({ name, threshold }) => [name, number(threshold)]));
    return {
      strict: this.#mode !== "loose",
      debounce: number(by("debounce")),
      blocked: this.#blocked,
      thresholds: this.#mode === "thresholds" ? { default: number(by("threshold")), categories } : null,
    };
  }

  // What tokens are that count, and how many of them make a flag; null for the guard's own policy.
  get words() {
    const { policy } = this;
    if (!policy) return null;
    const some = policy.blocked ? ", in a category that counts" : "";
    const level = policy.strict ? "Controversial or Unsafe" : "Unsafe";
    return { debounce: policy.debounce, counted: (policy.thresholds ? "above a threshold" : level) + some };
  }

  #show() {
    const [isOwn, byThresholds] = [this.#mode === "server", this.#mode === "thresholds"];
    by("counted").textContent = this.#blocked ? `${this.#blocked.length} of ${this.#rows.length} count` : "all count";
    for (const each of [by("debounce"), ...this.#rows.map(({ counts }) => counts)]) each.disabled = isOwn;
    by("default").hidden = !byThresholds;
    for (const { threshold } of this.#rows) {
      threshold.hidden = !byThresholds;
      threshold.placeholder = by("threshold").value;
    }
  }
}
