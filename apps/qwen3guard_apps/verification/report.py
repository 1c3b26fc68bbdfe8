"""The results of a verification as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qwen3guard_apps.evaluation.report import table
from qwen3guard_apps.verification.comparison import FIRM
from qwen3guard_apps.verification.formats import REFERENCE
from qwen3guard_apps.verification.outliers import FAR
from qwen3guard_apps.verification.recommendation import FIRM_CHANGED, MEAN_ERROR, UNREADABLE

ACTIVATIONS = {
    "attention_input": "inputs of q, k, v",
    "queries": "queries",
    "keys": "keys",
    "values": "values",
    "ffn_input": "inputs of gate, up",
    "down_input": "inputs of down",
}
GROUPED = 0.005
"""A language or kind is listed where so large a share of its levels has changed in a format."""


def verification_report(results: dict[str, Any], pictures: Sequence[str]) -> str:
    """`results` are those of `Verified.as_dict`."""
    checkpoint, texts = results["checkpoint"], results["texts"]
    gen = checkpoint["variant"] == "gen"
    lines = [
        f"# Verification of {checkpoint['source']}",
        "",
        f"Qwen3Guard-{checkpoint['variant'].capitalize()}, {checkpoint['parameters']:,} parameters in"
        f" {checkpoint['layers']} layers; {texts['judged']:,} texts."
        + (f" {texts['left_out']:,} more were left out: the guard cannot take them." if texts["left_out"] else ""),
        "",
        *(["**demo weights, not a safety classifier**", ""] if checkpoint["demo"] else []),
        _verdict(results),
        "",
        "## Beside fp32",
        "",
        _what_is_compared(gen),
        "",
        *_comparisons(results, "with_fp32", gen),
        *_problems(results),
        *_machine(results, gen),
        *_transformers(results, gen),
        *_groups(results),
        *_outliers(results["outliers"]),
    ]
    for picture in pictures:
        lines += [f"![{picture}]({picture})", ""]
    return "\n".join([*lines, *_rule(results)])


def _verdict(results: dict[str, Any]) -> str:
    name = results["recommended"]
    said = f"**Recommended: {name}.**" if name else "**No format is recommended.**"
    refused = [f"{each}: {', '.join(found['faults'])}" for each, found in results["formats"].items() if found["faults"]]
    return " ".join([said, *(f"{each}." for each in refused)])


def _what_is_compared(gen: bool) -> str:
    judgements = (
        "A judgement is the level after `Safety:`, one a text."
        if gen
        else "A judgement is a level: one of the prompt, and one of each token of the response. Tokens of one text are"
        " not independent, so the intervals of level and category are too narrow."
    )
    return (
        f"{judgements} In brackets are Wilson's 95 % intervals. Categories are counted where either guard says that the"
        " text is not Safe, refusals where either names one. A flag is the decision on a prompt or a response, with a"
        f" debounce of 2. A label is firm where fp32 preferred it by more than {FIRM}. dP is the largest difference of"
        " a level's probability, of each judgement."
    )


def _comparisons(results: dict[str, Any], reference: str, gen: bool) -> list[str]:
    """The table of the formats that were compared with `reference`, a field of a format's results."""
    header = ["format", "level", "category", "refusal" if gen else "", "flags, strict", "flags, loose", "firm changed"]
    header += ["dP largest", "mean", "same answer" if gen else ""]
    rows = [
        [name, *_cells(outcome[reference], gen)]
        for name, outcome in results["formats"].items()
        if outcome[reference] and (reference, name) != ("with_fp32", REFERENCE.name)
    ]
    kept = [column for column, word in enumerate(header) if word]
    return table([header[column] for column in kept], ([row[column] for column in kept] for row in rows))


def _cells(found: dict[str, Any], gen: bool) -> list[str]:
    probability, firm = found["probability"], found["firm_changed"]
    return [
        share_cell(found["level"]),
        share_cell(found["category"]),
        share_cell(found["refusal"]) if gen else "",
        *(share_cell(found["flags"][mode]) for mode in ("strict", "loose")),
        f"{firm['part']:,} of {firm['of']:,}",
        f"{probability['largest']:.4f}",
        f"{probability['mean']:.5f}",
        share_cell(found["answer"]) if gen else "",
    ]


def share_cell(found: dict[str, Any]) -> str:
    """A share with its interval, as a cell."""
    if found["value"] is None:
        return "n/a"
    low, high = found["interval"]
    return f"{found['value']:.4f} [{low:.4f}, {high:.4f}]"


def _problems(results: dict[str, Any]) -> list[str]:
    lines = []
    for name, outcome in results["formats"].items():
        if outcome["problem"]:
            lines.append(f"* {name} was not judged: {outcome['problem']}.")
        elif outcome["with_fp32"]["unreadable"]["found"]:
            count = outcome["with_fp32"]["unreadable"]["found"]
            lines.append(f"* {name}: {count:,} answers cannot be read; their levels are those after `Safety:`.")
    return [*lines, *([""] if lines else [])]


def _machine(results: dict[str, Any], gen: bool) -> list[str]:
    machine = results["machine"]
    rows = [
        [
            name,
            outcome["form"],
            f"{outcome['bytes'] / 1e6:,.1f} MB",
            f"{outcome['time']['p50_ms']:.2f} ms",
            f"{outcome['time']['rounds']} x {outcome['time']['calls']}",
            outcome["time"]["where"] + (f" ({outcome['time']['why']})" if outcome["time"]["why"] else ""),
        ]
        for name, outcome in results["formats"].items()
        if outcome["time"]
    ]
    what = "a call of `classify`, over texts that differ" if gen else "a step of one token of one stream"
    return [
        "## On this machine",
        "",
        f"The median time of {what}, in the quietest of the rounds. {machine['cores']} cores,"
        f" {machine['platform']}, ONNX Runtime {machine['onnxruntime']}, 8-bit products {machine['products']}.",
        "",
        *table(["format", "form", "size", "p50", "rounds", "measured in"], rows),
    ]


def _transformers(results: dict[str, Any], gen: bool) -> list[str]:
    told = results["transformers"]
    if not told["texts"]:
        return ["## Beside transformers", "", f"Nothing was compared with transformers: {told['why']}.", ""]
    return [
        "## Beside transformers",
        "",
        f"{told['texts']:,} of the texts, in float32 by PyTorch. Its tokenizer and template give the same token ids for"
        f" {told['same_tokens']:,} of them; special tokens that a text spells stay text here.",
        "",
        *_comparisons(results, "with_transformers", gen),
    ]


def _groups(results: dict[str, Any]) -> list[str]:
    rows = []
    for name, outcome in results["formats"].items():
        for group, values in (outcome["with_fp32"] or {"groups": {}})["groups"].items():
            rows += [
                [name, group, value, share_cell(found)]
                for value, found in values.items()
                if (group == "set" and name != REFERENCE.name) or 1 - found["value"] > GROUPED
            ]
    heading = [
        "## Where levels changed",
        "",
        f"Sets, and the languages and kinds with more than {GROUPED:.1%} changed.",
        "",
    ]
    return [*heading, *table(["format", "", "", "level"], rows)] if rows else []


def _outliers(found: dict[str, Any]) -> list[str]:
    weights = [
        [kind, f"{each['largest']:.1f}", "" if each["layer"] < 0 else each["layer"], f"{each['median']:.1f}"]
        for kind, each in found["weights"].items()
    ]
    before, after = (found["activations"][state] for state in ("original", "balanced"))
    activations = [
        [
            word,
            *(f"{before[kind]['largest']:.1f}", before[kind]["layer"], before[kind]["far"]),
            *(f"{after[kind]['largest']:.1f}", after[kind]["far"]),
        ]
        for kind, word in ACTIVATIONS.items()
    ]
    return [
        "## Outliers",
        "",
        "Weights: the largest number of a row, in units of the row's root mean square.",
        "",
        *table(["matrix", "largest", "in layer", "median row"], weights),
        f"Activations: a channel's root mean square, in units of the median channel's; and how many channels of all"
        f" layers are beyond {FAR}. Balanced is what the export in eight bits makes of them.",
        "",
        *table(["channels", "largest", "in layer", f"beyond {FAR}", "balanced, largest", f"beyond {FAR}"], activations),
    ]


def _rule(results: dict[str, Any]) -> Iterable[str]:
    return [
        "## The rule",
        "",
        f"A format is good if at most {FIRM_CHANGED:.1%} of the firm labels changed, the mean dP is at most"
        f" {MEAN_ERROR}, levels and flags agree in at least {results['min_agreement']:g}, and at most"
        f" {UNREADABLE:.0%} of the answers can no longer be read. The fastest good format is recommended.",
        "",
    ]
