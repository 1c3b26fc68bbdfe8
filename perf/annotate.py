"""Does `qwen3guard annotate` keep a server busy? Compares its rate with the rate at which bare requests are answered.

    .venv/bin/python perf/annotate.py MODEL_REPOSITORY [--input demo/everyday.jsonl] [--rows 400] [--rounds 5]

The bare requests are prepared, go over raw gRPC, have the same texts, and as many are in flight as annotate has. Both
run in turns, each in a process of its own. Prints one JSON object; `ratio` is annotate's median over the bare median.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from overload import Caller, answered_rate, in_a_process
from product import described, served
from qwen3guard_apps.annotation.flight import IN_FLIGHT

Row = dict[str, Any]
COMMAND = Path(sys.executable).parent / "qwen3guard"


async def bare(url: str, rows: list[Row]) -> float:
    """Answers a second to bare requests with the texts of `rows`."""
    turns = [tuple(row[name] for name in ("prompt", "response") if name in row) for row in rows]
    caller = Caller(url, turns, connections=1, timeout_s=600)
    return answered_rate(await caller.each_once(IN_FLIGHT))


def annotated(url: str, rows: list[Row], folder: Path) -> float:
    """Rows a second, as annotate itself reports."""
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output.unlink(missing_ok=True)
    command = [COMMAND, "annotate", source, output, "--url", url, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["rows_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--input", type=Path, default=Path("demo/everyday.jsonl"), help="prompts, or pairs")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.input.read_text(encoding="utf-8").splitlines()]
    rows = random.Random(1).choices(lines, k=arguments.rows)
    rates: dict[str, list[float]] = {"bare": [], "annotate": []}
    with served(arguments.repository) as server, tempfile.TemporaryDirectory() as folder:
        annotated(server.url, rows[: 4 * IN_FLIGHT], Path(folder))  # warms up
        for _ in range(arguments.rounds):
            rates["bare"].append(in_a_process(bare, server.url, rows))
            rates["annotate"].append(annotated(server.url, rows, Path(folder)))
        guards = [described(each) for each in server.manifests.values() if each.variant == "gen"]
    results: dict[str, Any] = {name: [round(rate, 2) for rate in measured] for name, measured in rates.items()}
    results |= {"guard": guards, "input": arguments.input.name, "rows": arguments.rows, "in_flight": IN_FLIGHT}
    print(json.dumps(results | {"ratio": round(median(rates["annotate"]) / median(rates["bare"]), 3)}))


if __name__ == "__main__":
    main()
