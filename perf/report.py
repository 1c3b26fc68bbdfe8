"""Makes a page with plots of perf/results/latest.json: docs/performance.md and docs/images/*.png.

.venv/bin/python perf/report.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
PAGE, IMAGES = ROOT / "docs" / "performance.md", ROOT / "docs" / "images"
HOLDS = Path(__file__).parent / "what_holds_it.json"
"""The reasons, by row, why an aim is not reached. They are written by hand, and shown only where the aim is missed."""
_TYPE = "<Type: '>"
"""What OpenVINO writes around the name of a type."""
GENERATED = "<!-- from here on written by perf/report.py -->"
BLUE, GREY, RED = "#2563eb", "#9ca3af", "#dc2626"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if the page differs")
    check = parser.parse_args().check
    result = json.loads((Path(__file__).parent / "results" / "latest.json").read_text())
    if check:
        if PAGE.read_text().partition(GENERATED)[2] != "\n\n" + page(result):
            sys.exit("docs/performance.md has other figures than perf/results/latest.json: run python perf/report.py")
        return
    IMAGES.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"figure.dpi": 120, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    _ratios(result["rows"])
    _contexts(result)
    _crowds(result)
    _floors(result)
    written = PAGE.read_text().partition(GENERATED)[0] if PAGE.is_file() else "# Performance\n\n"
    PAGE.write_text(written + GENERATED + "\n\n" + page(result))


def page(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    own = ", ".join(
        f"{name} {value}" for name, value in versions.items() if isinstance(value, str) and name != "commit"
    )
    peers = "; ".join(f"{name}: {', '.join(value)}" for name, value in versions.items() if isinstance(value, list))
    floor, notes = machine["floor"], result["notes"]
    runs = notes.get("runs", 1)
    kinds = notes["openvino_inference_precision"]
    computed = ", ".join(f"{name} in {kind.strip(_TYPE)}" for name, kind in kinds.items())
    lines = [
        f"Machine: {machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])}), "
        f"{machine['memory_gib']} GiB, {machine['system']}; {machine['threads']} threads. No GPU.",
        "",
        f"It reads {floor['read_gb_s']:.1f} GB/s and multiplies {floor['u8s8_gops']:.0f} GOP/s in u8 x s8, "
        f"{floor['fp32_gflops']:.0f} GFLOP/s in fp32 (perf/floor.py).",
        "",
        f"Versions: {own}. Peers: {peers}. Commit {versions['commit'][:12]}.",
        "",
        f"{'One run' if runs == 1 else f'Medians of {runs} runs, with the range of their values'}. A row names the "
        "precision in which its peer was fastest; the others are in perf/results/latest.json.",
        "",
        f"What OpenVINO computed in: {computed}. "
        f"Classify with the draft rejected twice: {notes['classify_rejected_ms']} ms.",
        "",
        "| row | work | peer | ours | theirs | value | at least | aim |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in result["rows"]),
        "",
        *_missed(result["rows"]),
        "![times as fast as each peer](images/ratios.png)",
        "![latency against context](images/contexts.png)",
        "![throughput against concurrency](images/crowds.png)",
        "![distance to the floor](images/floors.png)",
        "",
    ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    below = row["unit"] != "x"
    value = f"{row['value']:.2f}{'x' if row['unit'].startswith('x') else ' ' + row['unit']}"
    if len(values := row.get("values", ())) > 1:
        value += f" ({min(values):.2f} to {max(values):.2f})"
    least = "" if row["at_least"] is None else f"{'at most ' if below else ''}{row['at_least']:g}"
    verdict = {True: "met", False: "**not met**", None: ""}[row["met"]]
    cells = (row["row"], row["work"], row["peer"], shown(row["ours"]), shown(row["theirs"]), value)
    return "| " + " | ".join([*cells, f"{least} {verdict}", shown(row["aim"])]) + " |"


def _missed(rows: list[dict[str, Any]]) -> list[str]:
    reasons = json.loads(HOLDS.read_text()) if HOLDS.is_file() else {}
    missed = [row for row in rows if row["aim"] is not None and not _reached(row)]
    lines = [f"* Row {row['row']} ({row['peer']}): {reasons.get(row['row'], 'not looked into')}" for row in missed]
    return ["What holds the aims that were not reached:", "", *lines, ""] if missed else []


def _reached(row: dict[str, Any]) -> bool:
    return bool(row["value"] >= row["aim"] if row["unit"] == "x" else row["value"] <= row["aim"])


def _ratios(rows: list[dict[str, Any]]) -> None:
    shown = [row for row in rows if row["unit"] == "x" and int(row["row"].rstrip("abc")) not in (7, 8)][::-1]
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(shown) + 0.9))
    places = range(len(shown))
    axes.barh(places, [row["value"] for row in shown], color=BLUE, height=0.6)
    wanted = [(place, row["at_least"]) for place, row in zip(places, shown, strict=True) if row["at_least"]]
    axes.plot([value for _, value in wanted], [place for place, _ in wanted], "|", color=RED, ms=11, mew=2)
    for place, row in zip(places, shown, strict=True):
        axes.text(row["value"] * 1.04, place, f"{row['value']:.1f}x", va="center")
    axes.set_yticks(places, [f"{row['work'].split(' (')[0].split(', draft')[0]} · {row['peer']}" for row in shown])
    axes.set_xscale("log")
    axes.axvline(1, color=GREY, lw=0.8)
    axes.set_title("times as fast as the peer, through gRPC (red: what was asked for)", loc="left")
    _save(figure, "ratios")


def _contexts(result: dict[str, Any]) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.4))
    contexts, ones, sixteens = zip(*result["curves"]["context"], strict=True)
    axes.plot(contexts, ones, "o-", color=BLUE, label="1 token")
    axes.plot(contexts, sixteens, "s--", color=BLUE, label="16 tokens")
    for row in result["rows"]:
        if row["row"] in ("3a", "3b", "5a", "5b", "14a", "14b") and "1 at context" in row["work"]:
            context = 512 if row["row"].endswith("a") else 2048
            axes.plot(context, row["theirs"], "x", color=GREY)
            axes.annotate(row["peer"], (context, row["theirs"]), fontsize=7, xytext=(4, 2), textcoords="offset points")
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [str(context) for context in contexts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens of context")
    axes.set_title("stream_step, ms through gRPC; x: peers, 1 token", loc="left")
    axes.legend(frameon=False)
    _save(figure, "contexts")


def _crowds(result: dict[str, Any]) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for name, label in (("sessions", "stream_step, tokens/s, at 512"), ("classify", "classify, requests/s")):
        counts, rates, _ = zip(*result["curves"][name], strict=True)
        axes.plot(counts, rates, "o-", label=label)
    axes.set_xlabel("sessions or clients at once")
    axes.set_ylim(bottom=0)
    axes.set_title("throughput", loc="left")
    axes.legend(frameon=False)
    _save(figure, "crowds")


def _floors(result: dict[str, Any]) -> None:
    rows = [row for row in result["rows"] if row["unit"] == "x floor"]
    figure, axes = plt.subplots(figsize=(6, 1.6))
    axes.barh([row["work"].split(",")[0] for row in rows], [row["ours"] for row in rows], color=BLUE, height=0.5)
    axes.barh([row["work"].split(",")[0] for row in rows], [row["theirs"] for row in rows], color=GREY, height=0.5)
    for place, row in enumerate(rows):
        axes.text(row["ours"], place, f"  {row['value']:.2f} times the floor", va="center")
    axes.set_xscale("log")
    axes.set_title("ms; grey: the machine's floor", loc="left")
    _save(figure, "floors")


def _save(figure: Any, name: str) -> None:
    figure.savefig(IMAGES / f"{name}.png", bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
