"""The figures of an evaluation as Markdown, with strict and loose always side by side. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qwen3guard_apps.evaluation.intervals import LEAST_ROWS
from qwen3guard_apps.evaluation.judged import MODES

RATES = {"f1": "F1", "precision": "precision", "recall": "recall", "false_positive_rate": "false positives"}


def report(results: dict[str, Any], pictures: Sequence[str]) -> str:
    data = results["data"]
    lines = [
        "# Evaluation of a Qwen3Guard server",
        "",
        f"{data['name']}: {data['rows']:,} rows, {data['unlabelled']:,} of them without a label that can be read.",
        f"A row labelled Controversial counts as {'unsafe' if data['controversial_is_unsafe'] else 'safe'}."
        " The positive class is unsafe. Strict counts a judgement of Controversial as unsafe, loose does not;"
        " both are given. In brackets are 95 % intervals: Wilson's for shares of rows, the percentile bootstrap"
        " over rows (1,000 resamples) for F1, areas and average precision. That one says nothing about few rows, or"
        f" rows without an error: with fewer than {LEAST_ROWS} rows of a class, or no width, it is [too few]. A rate"
        " of no rows is n/a.",
        "",
        *(f"* {sentence}" for sentence in data["notes"]),
        *([""] if data["notes"] else []),
    ]
    for name, guard in results["guards"].items():
        lines += _guard(name, guard)
    if results.get("common"):
        lines += _common(results["common"])
    for picture in pictures:
        lines += [f"![{picture}]({picture})", ""]
    return "\n".join(lines)


def _guard(name: str, guard: dict[str, Any]) -> list[str]:
    figures = guard["figures"]
    lines = [f"## {name.capitalize()}", ""]
    if guard["notice"]:
        lines += [f"**{guard['notice']}**", ""]
    if guard["warning"]:
        lines += [f"**{guard['warning']}**", ""]
    lines += _decisions(figures["decisions"])
    if guard["failed"]:
        lines += _failed(guard["failed"])
    if "upstream_rule" in figures:
        lines += [
            "By upstream's evaluation rule on the response's tokens instead (two neighbouring Unsafe tokens anywhere,"
            " else two Controversial ones; it looks ahead). Upstream's script also judges the two tokens that close the"
            " response, so single rows may differ:",
            "",
            *_decisions(figures["upstream_rule"]),
        ]
    if "hits" in figures:
        lines += _hits(figures["hits"])
    for score, curve in figures.get("curves", {}).items():
        lines += _curve(score, curve)
    if "chosen" in guard:
        lines += _chosen(guard["chosen"])
    if "not_chosen" in guard:
        lines += [f"No thresholds are proposed: {guard['not_chosen']}", ""]
    if figures["categories"]:
        header = ["category", "unsafe rows", *(f"{word}, {mode}" for word in ("flagged", "named") for mode in MODES)]
        rows = [
            [category, rates["strict"]["recall"]["of"]]
            + [_rate(rates[mode][rate]) for rate in ("recall", "named") for mode in MODES]
            for category, rates in figures["categories"].items()
        ]
        lines += [
            "### By labelled category",
            "",
            "Named: the share of the flagged rows whose answer names the category.",
            "",
        ]
        lines += table(header, rows)
    for group, values in figures["groups"].items():
        header = [group, "rows", *(f"{word}, {mode}" for word in RATES.values() for mode in MODES)]
        rows = [
            [value, group_figures["rows"], *(_rate(group_figures[mode][rate]) for rate in RATES for mode in MODES)]
            for value, group_figures in values.items()
        ]
        lines += [f"### By {group}", "", *table(header, rows)]
    return lines


def _decisions(both: dict[str, Any]) -> list[str]:
    rows = [[word, *(_rate(both[mode][rate]) for mode in MODES)] for rate, word in RATES.items()]
    counts = [f"{each['tp']} / {each['fp']} / {each['fn']} / {each['tn']}" for each in (both[mode] for mode in MODES)]
    return table(["", *MODES], [*rows, ["tp / fp / fn / tn", *counts]])


def _failed(failed: dict[str, Any]) -> list[str]:
    header = ["", *(f"{words}, {mode}" for words in ("all passed", "all blocked") for mode in MODES)]
    cells = [failed[name][mode] for name in ("missed", "blocked") for mode in MODES]
    return [
        f"{failed['unsafe'] + failed['safe']:,} labelled rows could not be judged, {failed['unsafe']:,} of them unsafe"
        f" and {failed['safe']:,} safe: the figures above are without them. With them, if all had passed, or all been"
        " blocked:",
        "",
        *table(header, [[word, *(_rate(cell[rate]) for cell in cells)] for rate, word in RATES.items()]),
    ]


def _common(common: dict[str, Any]) -> list[str]:
    header = ["", *(f"{name}, {mode}" for name in common["guards"] for mode in MODES)]
    cells = [both[mode] for both in common["guards"].values() for mode in MODES]
    return [
        "## Both guards on the same rows",
        "",
        f"The {common['rows']:,} rows that both have judged; compare the guards by these alone.",
        "",
        *table(header, [[word, *(_rate(cell[rate]) for cell in cells)] for rate, word in RATES.items()]),
    ]


def _hits(both: dict[str, Any]) -> list[str]:
    rows = [
        [word, *(_rate(each[rate]) for each in both.values())]
        for rate, word in (("exact", "exact hit"), ("within_128", "within 128 tokens"))
    ]
    rows += [[name, *(each["bins"][name] for each in both.values())] for name in both["strict"]["bins"]]
    return [
        "### Where streams were flagged",
        "",
        "Flags beside the labelled sentence of unsafe responses. Strict and loose flag at the second of two unsafe"
        " tokens in a row, and do not look ahead.",
        "",
        *table(["", "strict", "loose", "upstream's rule"], rows),
    ]


def _curve(score: str, curve: dict[str, Any]) -> list[str]:
    header = ["false positives wanted", "t", *(word for word in RATES.values())]
    rows = [
        [f"{row['wanted']:.0%}", f"{row['threshold']:.4f}", *(_rate(row[rate]) for rate in RATES)]
        for row in curve["thresholds"]
    ]
    areas = f"Area under the ROC {_rate(curve['area'])}, average precision {_rate(curve['average_precision'])}."
    return [f"### Score {score}", "", areas, "Unsafe where the score is above t:", "", *table(header, rows)]


def _chosen(chosen: dict[str, Any]) -> list[str]:
    own = [[name, f"{value:.4f}"] for name, value in chosen["categories"].items()]
    outcomes = [("all rows", chosen["rows"]), ("chosen on half, measured on the rest", chosen.get("held_out"))]
    rows = [[name, *(_rate(each[rate]) for rate in RATES)] for name, each in outcomes if each]
    return [
        "### Chosen thresholds",
        "",
        f"For {chosen['wanted']:.1%} false positives: unsafe where 1 - P(Safe) > {chosen['default']:.4f}.",
        "",
        *(table(["category with its own threshold", "t"], own) if own else []),
        *table(["", *RATES.values()], rows),
    ]


def _rate(rate: dict[str, Any]) -> str:
    if rate["value"] is None:
        return "n/a"
    if rate["interval"] is None:
        return f"{rate['value']:.3f} [too few]"
    low, high = rate["interval"]
    return f"{rate['value']:.3f} [{low:.3f}, {high:.3f}]"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table, with an empty one behind it."""
    lines = [header, ["---"] * len(header), *rows]
    return [*("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines), ""]
