"""What a cascade saves and costs: the same responses moderated by Stream alone, and with Gen to confirm each flag.

    python perf/cascade.py REPOSITORY LABELLED.jsonl [--confirm loose] [--words 6]

A row of LABELLED has `prompt`, `response` and `unsafe` (true or false). Responses come a few words at a time. Prints
false stops and missed stops of both, and the milliseconds that moderating a response took; JSON last.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from product import median, served
from qwen3guard_client import GuardClient


def pieces(text: str, words: int) -> list[str]:
    parts = text.split(" ")
    return [" ".join(parts[at : at + words]) + " " for at in range(0, len(parts), words)]


def moderated(guard: GuardClient, row: dict[str, Any], words: int, confirm: str | None) -> tuple[bool, int, float]:
    """Whether it was stopped, how often Gen was asked, and the milliseconds in all."""
    began = time.perf_counter()
    found = guard.moderate(pieces(row["response"], words), prompt=row["prompt"], confirm=confirm)
    for _ in found:
        pass
    return found.flag is not None, found.asked, 1e3 * (time.perf_counter() - began)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("repository", type=Path)
    arguments.add_argument("labelled", type=Path)
    arguments.add_argument("--confirm", choices=("strict", "loose"), default="loose")
    arguments.add_argument("--words", type=int, default=6)
    asked = arguments.parse_args()
    rows = [json.loads(line) for line in asked.labelled.read_text().splitlines() if line.strip()]
    figures: dict[str, Any] = {"rows": len(rows), "unsafe": sum(row["unsafe"] for row in rows)}
    with served(asked.repository) as server, GuardClient(server.url) as guard:
        classify = []
        for row in rows[:20]:
            began = time.perf_counter()
            guard.classify(row["prompt"], row["response"])
            classify.append(1e3 * (time.perf_counter() - began))
        figures["classify_ms"] = round(median(classify), 1)
        for name, confirm in (("stream", None), ("cascade", asked.confirm)):
            results = [moderated(guard, row, asked.words, confirm) for row in rows]
            pairs = list(zip(rows, results, strict=True))
            figures[name] = {
                "false_stops": sum(stopped and not row["unsafe"] for row, (stopped, *_) in pairs),
                "missed": sum(not stopped and row["unsafe"] for row, (stopped, *_) in pairs),
                "asked": sum(count for _, count, _ in results),
                "ms": round(median([took for *_, took in results]), 1),
            }
            print(name, figures[name], flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
