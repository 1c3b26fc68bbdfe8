"""Writes what README.md and docs/comparison.md quote of perf/results/latest.json, and of a GPU's result where there is
one. With --check, writes nothing and fails if they differ.

    .venv/bin/python perf/quoted.py [--check]
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from capacity import SIZES, machines

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "perf" / "results"
LATEST = RESULTS / "latest.json"
CONTEXT = 512
RATES = (30, 10)
"""Tokens a second that an LLM writes to one reader: a quick one, and about as fast as people read."""
THREADS = 8
"""Threads of a graph at most: one for each KV head."""
PEERS = ("transformers", "OpenVINO int8", "llama.cpp Q4_K_M", "onnxruntime-genai int4")
WORKS = {
    "classify, 330 tokens (201 held), 12 answer tokens, draft accepted": "`classify`, 330 tokens (201 held) and 12 of"
    " answer",
    "chat turn 8: classify of 2,450 tokens (2,076 held)": "`classify` in the 8th turn of a chat, 2,450 tokens"
    " (2,076 held)",
    "START of 1,988 tokens, nothing held": "START of a stream of 1,988 tokens, nothing held",
    "chat turn 8: START of 1,988 tokens (1,710 held)": "START of 1,988 tokens, 1,710 of them held: a chat's 8th turn",
    "stream_step, 1 at context 512": "`stream_step`, one token at 512 tokens of context",
    "stream_step, 1 at context 2048": "`stream_step`, one token at 2,048 tokens of context",
    "stream_step, 16 at context 512": "`stream_step`, 16 tokens at 512 tokens of context",
}
"""The works of the table, and how they are called."""
EVEN = 1.03
"""Two times that differ by less than this factor are called even."""
Row = dict[str, Any]


def of(result: dict[str, Any], number: str) -> Row:
    return next(row for row in result["rows"] if row["row"] == number)


def held(result: dict[str, Any], rate: float) -> int:
    """The most sessions, of those that were measured, that had `rate` tokens a second each."""
    return max((count for count, total, _ in result["curves"]["sessions"] if total >= count * rate), default=0)


def when(result: dict[str, Any]) -> str:
    """The day in the name of the file that holds the same result."""
    name = next(path.name for path in sorted(RESULTS.glob("2*.json")) if json.loads(path.read_text()) == result)
    day = datetime.date.fromisoformat(name[:10])
    return f"{day.day} {day:%B %Y}"


def machine(result: dict[str, Any]) -> str:
    found = result["machine"]
    flags = [name for flag, name in (("avx512_vnni", "VNNI"), ("avx512_bf16", "bf16")) if flag in found["flags"]]
    having = f" (AVX-512 with {' and '.join(flags)})" if flags else ""
    return f"{found['cores']} cores of an {found['cpu']}{having}"


def source(result: dict[str, Any]) -> str:
    runs = result["notes"].get("runs", 1)
    counted = "one run" if runs == 1 else f"medians of {runs} runs"
    versions = result["versions"]
    return f"{counted}, {when(result)}, commit {versions['commit'][:7]}, onnxruntime {versions['onnxruntime']}"


def capacity(result: dict[str, Any]) -> str:
    """The table of what a machine holds, for the top of README."""
    rates = ", ".join(f"{held(result, rate)} at {rate} tokens a second" for rate in RATES)
    one, eight = of(result, "8")["theirs"], of(result, "8")["ours"]
    times = THREADS // result["machine"]["threads"]
    step = of(result, "6a")["ours"]
    lines = [
        "| machine | streams, a token a step | `classify` of 330 tokens |",
        "|---|---|---|",
        f"| {machine(result)} | {rates} | {max(one, eight):.1f} a second |",
        f"| 16 cores | not measured: at most {times} times as many, as a graph takes {THREADS} threads | the same |",
        _card(result),
        "",
        wrapped(
            f"Of the 0.6B shape with random weights, in dq8r on a CPU, at {CONTEXT} tokens of context. What is"
            f" measured: {source(result)}. An LLM's tokens may be sent together: 16 take {step:.0f} ms where one takes"
            f" {of(result, '3a')['ours']:.0f}. [docs/capacity.md](docs/capacity.md) has other sizes and contexts."
        ),
    ]
    return "\n".join(lines)


def _card(result: dict[str, Any]) -> str:
    """The line of a GPU: measured where there is a result of a card, else by arithmetic."""
    measured = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("gpu-*.json"))]
    for found in (each for each in reversed(measured) if not each["fake"]):
        rows = {row["row"]: row for row in found["rows"]}
        crowd, served = rows["g6"]["value"], rows["g8"]["value"]
        if crowd and served:
            rate = f"{crowd:,.0f} tokens a second of 64 streams, bare"
            return f"| {found['card']['name']}, fp16 | {rate} | {served:.1f} ms each, one after the other |"
    card = machines(result)[-1]
    streams = card.sessions_in_time(SIZES[0], CONTEXT)
    requests = card.requests_a_second(SIZES[0])
    return (
        f"| {card.name} | not measured: {streams:,} at {RATES[0]} by arithmetic on its data sheet | not measured:"
        f" {requests:,.0f} a second by arithmetic |"
    )


def table(result: dict[str, Any]) -> list[str]:
    lines = [
        "| | time | transformers bf16 | OpenVINO int8 | llama.cpp Q4_K_M | onnxruntime-genai int4 |",
        "|---|---|---|---|---|---|",
    ]
    for work, name in WORKS.items():
        rows = [row for row in result["rows"] if row["work"] == work]
        cells = [_cell(peer, rows) for peer in PEERS]
        lines.append(f"| {name} | {_time(rows[0]['ours'])} | {' | '.join(cells)} |")
    return lines


def _cell(peer: str, rows: list[Row]) -> str:
    for row in rows:
        if row["peer"].startswith(peer):
            kind = row["peer"].removeprefix(peer).strip()
            return _time(row["theirs"]) + (f" in {kind}" if kind not in ("", "bf16") else "")
    return ""


def _time(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 200 else f"{ms / 1e3:.2f} s" if ms < 1000 else f"{ms / 1e3:.1f} s"


def lost(result: dict[str, Any]) -> str:
    """The rows in which a peer is as fast, or faster."""
    found: dict[str, list[str]] = {}
    for row in result["rows"]:
        if row["unit"] == "x" and row["work"] in WORKS and row["value"] < EVEN:
            found.setdefault(row["work"], []).append(f"{row['peer']} ({row['value']:.2f})")
    if not found:
        return "No row is lost."
    named = "; ".join(f"{WORKS[work]}: {', '.join(peers)}" for work, peers in found.items())
    return f"Lost or even, as times as fast as the peer: {named}."


def wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def fast(result: dict[str, Any]) -> str:
    """The table of README's How fast, and what is said of it."""
    crowd, clients = of(result, "7"), of(result, "8")
    loops = [of(result, number)["theirs"] for number in ("4a", "4b")]
    return "\n".join(
        [
            wrapped(
                f"On {machine(result)}, without a GPU, at the 0.6B shape with random weights in dq8r, through gRPC."
                " The peers run bare, each in the precision in which it is fastest here:"
            ),
            "",
            *table(result),
            "",
            wrapped(lost(result)),
            "",
            wrapped(
                f"16 streams that step together got {crowd['ours']:.0f} tokens a second where one got"
                f" {crowd['theirs']:.0f}; 8 clients of `classify` got {clients['ours']:.1f} requests a second"
                f" where one got {clients['theirs']:.1f}. The published streaming loop computes the whole text"
                f" again for every token: {loops[0] / 1e3:.1f} s at 512 tokens and {loops[1] / 1e3:.1f} s at 2,048."
            ),
            "",
            f"These are {source(result)}.",
        ]
    )


def compared(result: dict[str, Any]) -> str:
    """The table of docs/comparison.md: how many times as fast as each peer, with the rows that are lost."""
    peers = list(dict.fromkeys(row["peer"] for row in result["rows"] if row["work"] in WORKS))
    lines = [
        wrapped(
            f"{machine(result)}; {source(result)}. Above 1 we are faster; **bold** is lost. The peers run bare in"
            " their own process, ours is served through gRPC."
        ),
        "",
        "| work | " + " | ".join(peers) + " |",
        "|---|" + "---|" * len(peers),
    ]
    for work, name in WORKS.items():
        values = {row["peer"]: row["value"] for row in result["rows"] if row["work"] == work}
        cells = [_ratio(values[peer]) if peer in values else "" for peer in peers]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    versions = result["versions"]
    named = [", ".join(value) for name, value in versions.items() if isinstance(value, list)]
    return "\n".join([*lines, "", wrapped(f"Versions: {'; '.join(dict.fromkeys(named))}.")])


def _ratio(value: float) -> str:
    return f"**{value:.2f}**" if value < 1 else f"{value:.2f}"


WRITTEN = {
    "README.md": {"capacity": capacity, "fast": fast},
    "docs/comparison.md": {"compared": compared},
}
"""The parts of each page, by their names in its markers."""


def page(text: str, result: dict[str, Any], parts: dict[str, Any]) -> str:
    """`text` with what the results say between the markers of each part."""
    for name, write in parts.items():
        begin, end = f"<!-- {name}: written by perf/quoted.py -->", f"<!-- end of {name} -->"
        text, found = re.subn(
            rf"{re.escape(begin)}.*?{re.escape(end)}",
            lambda _, b=begin, w=write, e=end: f"{b}\n\n{w(result)}\n\n{e}",
            text,
            flags=re.DOTALL,
        )
        if found != 1:
            sys.exit(f"The part {name} has its markers {found} times.")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Write what README.md and docs/comparison.md quote of the results.")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if they differ")
    check = parser.parse_args().check
    result = json.loads(LATEST.read_text())
    for name, parts in WRITTEN.items():
        path = ROOT / name
        written = path.read_text(encoding="utf-8")
        new = page(written, result, parts)
        if not check:
            path.write_text(new, encoding="utf-8")
        elif new != written:
            sys.exit(f"{name} quotes other figures than perf/results/latest.json has: run python perf/quoted.py")


if __name__ == "__main__":
    main()
