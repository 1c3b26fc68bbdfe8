"""The gains and costs of a cascade: the same responses moderated by Stream alone, and with Gen to confirm each flag.

    python perf/cascade.py REPOSITORY LABELLED.jsonl [--confirm loose] [--words 6]

A row of LABELLED has `prompt`, `response` and `unsafe` (true or false). Responses arrive a few words at a time. Prints
the false stops and the missed stops of both, and the milliseconds for moderating a response; the last line is JSON.
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
    """Moderates one response; returns whether it was stopped, how often Gen was asked, and the milliseconds."""
    began = time.perf_counter()
    moderation = guard.moderate(pieces(row["response"], words), prompt=row["prompt"], confirm=confirm)
    for _ in moderation:
        pass
    return moderation.flag is not None, moderation.asked, 1e3 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("labelled", type=Path)
    parser.add_argument("--confirm", choices=("strict", "loose"), default="loose")
    parser.add_argument("--words", type=int, default=6)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.labelled.read_text().splitlines() if line.strip()]
    figures: dict[str, Any] = {"rows": len(rows), "unsafe": sum(row["unsafe"] for row in rows)}
    with served(arguments.repository) as server, GuardClient(server.url, scope=None) as guard:
        classify = []
        for row in rows[:20]:
            began = time.perf_counter()
            guard.classify(row["prompt"], row["response"])
            classify.append(1e3 * (time.perf_counter() - began))
        figures["classify_ms"] = round(median(classify), 1)
        for name, confirm in (("stream", None), ("cascade", arguments.confirm)):
            results = [moderated(guard, row, arguments.words, confirm) for row in rows]
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
