"""Judges each line of a text file as a prompt, and prints a line of JSON for each, in the same order.

    python examples/classify_file.py prompts.txt --url 127.0.0.1:8001

A few requests are in flight at a time. While the server is overloaded, each further try waits twice as long.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qwen3guard_client import Classification, GuardClient, errors

IN_FLIGHT = 4
PATIENCE_S = 10


def judge(guard: GuardClient, prompt: str) -> Classification:
    wait_s = 0.1
    while True:
        try:
            return guard.classify(prompt)
        except errors.Overloaded:
            if wait_s > PATIENCE_S:
                raise
        time.sleep(wait_s)
        wait_s *= 2


def main() -> int:
    parser = argparse.ArgumentParser(description="Judge each line of a text file as a prompt.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a text file with a prompt in each line")
    parser.add_argument("--url", default="127.0.0.1:8001", help="the guard's server (default: %(default)s)")
    arguments = parser.parse_args()
    prompts = [line for line in arguments.file.read_text(encoding="utf-8").splitlines() if line.strip()]
    with GuardClient(arguments.url) as guard, ThreadPoolExecutor(IN_FLIGHT) as pool:
        for classification in pool.map(lambda prompt: judge(guard, prompt), prompts):
            print(classification.as_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
