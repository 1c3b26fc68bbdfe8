"""Writes the GPU's part of docs/performance.md from the newest result in perf/results that a real card gave.

    python perf/gpu/page.py

It stands between two markers; perf/report.py leaves it as it is. Without a result it says that none has been run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plots

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "perf" / "results"
IMAGES = ROOT / "docs" / "images"
BEGIN = "<!-- the GPU's part, from here on written by perf/gpu/page.py -->"
END = "<!-- end of the GPU's part -->"
NEXT = "<!-- from here on written by perf/report.py -->"
NONE = (
    "No measurement has been run on a GPU: perf/results has no result of a card. `python perf/gpu/run.py` makes one "
    "([gpu.md](gpu.md#measuring-on-a-card))."
)
TITLE = "## On a GPU"
Figure = dict[str, Any]


def newest(results: Path = RESULTS) -> dict[str, Any] | None:
    """The newest result that is not fake, or None."""
    for path in sorted(results.glob("gpu-*.json"), reverse=True):
        found: dict[str, Any] = json.loads(path.read_text())
        if not found["fake"]:
            return found
    return None


def part(result: dict[str, Any] | None) -> str:
    """The GPU's part of the page, between its markers."""
    lines = [NONE] if result is None else _measured(result)
    return "\n".join([BEGIN, "", TITLE, "", *lines, "", END])


def with_part(page: str, made: str) -> str:
    """The page with its GPU's part replaced by `made`, or put before what perf/report.py writes."""
    if BEGIN in page:
        before, _, rest = page.partition(BEGIN)
        return before + made + rest.partition(END)[2]
    before, marker, after = page.partition(NEXT)
    return f"{before.rstrip()}\n\n{made}\n\n{marker}{after}"


def write() -> None:
    """Writes the page, and its plots where matplotlib is installed."""
    result = newest()
    PAGE.write_text(with_part(PAGE.read_text(), part(result)))
    try:
        plots.draw(result["figures"] if result else [], IMAGES)
    except ImportError:
        print("No plots: matplotlib is missing. Run perf/gpu/page.py where it is installed.", file=sys.stderr)


def _measured(result: dict[str, Any]) -> list[str]:
    figures, card, versions = result["figures"], result["card"] or {}, result["versions"]
    named = ", ".join(f"{name} {value}" for name, value in versions.items() if name not in ("commit", "system"))
    lines = [
        f"Card: {card.get('name', 'unknown')}, {card.get('memory_gib', 0):.0f} GiB; CUDA {card.get('cuda')}. {named}. "
        f"Commit {versions['commit'][:12]}. Random weights.",
        "",
        "| row | work | beside | ours | theirs | value | bound |",
        "|---|---|---|---|---|---|---|",
        *map(_row, result["rows"]),
        "",
    ]
    lines += [f"* {failed['part']} failed: {failed['failed']}" for failed in result["failed"]]
    lines += [f"* {name} was left out: no time was left." for name in result["left_out"]]
    lines += [f"* Row {row['row']}: {_why(row)}" for row in result["rows"] if row["met"] is False]
    lines += [""] if lines[-1] else []
    drawn = [f"![{name.partition('.')[0]}](images/{name})" for name in plots.names(figures)]
    lines += [*drawn, ""] if drawn else []
    for title, figure, columns in TABLES:
        lines += _table(title, [each for each in figures if each["figure"] == figure], columns)
    return lines[:-1]


TABLES = (
    ("What the card reached in a copy", "copy", ("gb_s", "ms")),
    ("Matrix times vector, fp16, in a CUDA graph", "product", ("size", "name", "rows", "columns", "us", "gb_s")),
    ("A launch alone", "launch alone", ("us",)),
    ("A launch in a CUDA graph", "launch in a CUDA graph", ("us",)),
    ("Fidelity", "fidelity", ("variant", "size", "weights", "way", "rms", "torch_rms", "not_finite")),
    ("Bare steps", "step", ("variant", "size", "weights", "context", "k", "sessions", "ms", "ms_p99", "tokens_s")),
    ("Bare classification", "classification", ("size", "weights", "at_once", "tokens", "held", "ms", "ms_p99")),
    ("Peers", "peer step", ("peer", "size", "type", "how", "context", "ms", "ms_p99")),
    ("Classification through gRPC", "classify over gRPC", ("size", "weights", "ms", "ms_p99")),
    ("Steps through gRPC", "stream_step over gRPC", ("size", "weights", "sessions", "k", "ms", "ms_p99", "tokens_s")),
    (
        "Memory, GiB",
        "memory",
        ("variant", "size", "weights", "loaded_gib", "slots", "slots_gib", "recorded_gib", "long_pass_gib"),
    ),
)
"""Each table's title, the figures in it, and which of their values it shows."""


def _table(title: str, figures: Sequence[Figure], columns: Sequence[str]) -> list[str]:
    if not figures:
        return []
    rows = ["| " + " | ".join(_shown(each.get(column)) for column in columns) + " |" for each in figures]
    return [f"### {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *rows, ""]


def _row(row: dict[str, Any]) -> str:
    more = row["unit"] in ("x", "tokens/s")
    value = row["missing"] if row["value"] is None else f"{_shown(row['value'])} {row['unit']}"
    verdict = {True: "met", False: "**not met**", None: ""}[row["met"]]
    bound = f"{'at least' if more else 'at most'} {row['at_least']:g} {verdict}".strip()
    cells = (row["row"], row["work"], row["peer"], _shown(row["ours"]), _shown(row["theirs"]), value, bound)
    return "| " + " | ".join(cells) + " |"


def _why(row: dict[str, Any]) -> str:
    """What a missed row is made of, as far as the ceilings tell."""
    if not row["parts"]:
        return "not met; its figures are below."
    made_of = ", ".join(
        f"{name.removesuffix('_ms')} {_shown(value)}{' ms' if name.endswith('_ms') else ''}"
        for name, value in row["parts"].items()
    )
    return f"not met. In this run: {made_of}."


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write()
