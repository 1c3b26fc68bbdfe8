"""Does `qwen3guard annotate` keep a server busy? Its rate beside the rate at which the server answers bare requests.

    .venv/bin/python perf/annotate.py MODEL_REPOSITORY [--prompts demo/everyday.jsonl] [--rows 400] [--rounds 5]

Bare: prepared requests over raw gRPC, as many under way as annotate has; the texts are the same. Both in turns, each in
a process of its own. Prints one JSON object; `ratio` is the median of annotate over the median of bare.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

from overload import Caller, answered_rate, in_a_process
from product import described, served
from qwen3guard_apps.annotate_flight import IN_FLIGHT

COMMAND = Path(sys.executable).parent / "qwen3guard"


async def bare(url: str, texts: list[str]) -> float:
    """Answers a second, for as many requests as there are texts."""
    caller = Caller(url, [(text,) for text in texts], connections=1, timeout_s=600)
    return answered_rate(await caller.each_once(IN_FLIGHT))


def annotated(url: str, texts: list[str], folder: Path) -> float:
    """Rows a second, by annotate's own account."""
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    output.unlink(missing_ok=True)
    command = [COMMAND, "annotate", source, output, "--url", url, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["rows_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--prompts", type=Path, default=Path("demo/everyday.jsonl"), help="JSON lines with a prompt")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    prompts = [json.loads(line)["prompt"] for line in arguments.prompts.read_text().splitlines()]
    texts = random.Random(1).choices(prompts, k=arguments.rows)
    rates: dict[str, list[float]] = {"bare": [], "annotate": []}
    with served(arguments.repository) as server, tempfile.TemporaryDirectory() as folder:
        annotated(server.url, texts[: 4 * IN_FLIGHT], Path(folder))  # warms up
        for _ in range(arguments.rounds):
            rates["bare"].append(in_a_process(bare, server.url, texts))
            rates["annotate"].append(annotated(server.url, texts, Path(folder)))
        guards = [described(each) for each in server.manifests.values() if each.variant == "gen"]
    row: dict[str, Any] = {name: [round(rate, 2) for rate in found] for name, found in rates.items()}
    row |= {"guard": guards, "characters": round(mean(map(len, texts))), "rows": arguments.rows, "in_flight": IN_FLIGHT}
    print(json.dumps(row | {"ratio": round(median(rates["annotate"]) / median(rates["bare"]), 3)}))


if __name__ == "__main__":
    main()
