"""Measures everything on one card, in order of weight, and writes the result after each part.

    python perf/gpu/run.py [--minutes 45] [--only ceilings steps] [--resume FILE] [--results perf/results] [--fake]

Writes RESULTS/gpu-<time>-<card>.json, and the GPU's part of docs/performance.md (page.py). What fails is told there and
does not end the run; what has no time left is named. With --fake it needs no GPU, its result goes to FOLDER/results,
no row is met or unmet, and the page stays as it is.
"""

from __future__ import annotations

import datetime
import json
import platform
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import page
from figures import ROOT, parser
from parts import Outcome, Part, run
from rows import rows

RESULTS = ROOT / "perf" / "results"
LEAST_S = 5.0
"""A part is not begun with less time than this."""
PLAN = (
    Part("ceilings.py", minutes=3),
    Part("prepared.py", ("--size", "0.6B", "--weights", "fp16", "bf16"), minutes=10),
    Part("fidelity.py", ("--size", "0.6B", "--variant", "stream"), minutes=4),
    Part("fidelity.py", ("--size", "0.6B", "--variant", "gen"), minutes=4),
    Part("steps.py", ("--size", "0.6B"), minutes=4),
    Part("classification.py", minutes=5),
    Part("peers.py", ("--size", "0.6B"), minutes=5),
    Part("over_grpc.py", minutes=10),
    Part("memory.py", ("--size", "0.6B"), minutes=3),
    Part("prepared.py", ("--size", "4B", "--variant", "stream"), minutes=10, if_fake=False),
    Part("steps.py", ("--size", "4B"), minutes=5),
    Part("memory.py", ("--size", "4B", "--variant", "stream"), minutes=3, if_fake=False),
    Part("fidelity.py", ("--size", "4B", "--variant", "stream", "--drop"), minutes=8),
    Part("fidelity.py", ("--size", "4B", "--variant", "gen", "--drop"), minutes=12),
    Part("peers.py", ("--size", "4B"), minutes=5, if_fake=False),
    Part("steps.py", ("--size", "0.6B", "--weights", "bf16"), minutes=4, if_fake=False),
)
"""What is run twice with other arguments is left out where its shapes would be the same."""
PACKAGES = ("torch", "transformers", "onnxruntime-gpu", "onnxruntime", "onnx", "numpy", "tokenizers", "nvidia-pytriton")


def result(outcomes: list[Outcome], left_out: list[str], *, fake: bool) -> dict[str, Any]:
    """The result so far, as JSON."""
    figures = [figure for outcome in outcomes for figure in outcome.figures]
    cards = [figure for figure in figures if figure["figure"] == "card"]
    return {
        "fake": fake,
        "card": cards[-1] if cards else None,
        "rows": rows(figures, fake=fake),
        "failed": [outcome.summary for outcome in outcomes if outcome.failed],
        "left_out": left_out,
        "parts": [outcome.summary for outcome in outcomes],
        "versions": versions(),
        "figures": figures,
    }


def earlier(path: Path) -> list[Outcome]:
    """What the parts of an earlier result did that did not fail. Raises OSError, or ValueError for another file."""
    found = json.loads(path.read_text())
    outcomes, begin = [], 0
    for part in found["parts"]:
        end = begin + part["figures"]
        if "failed" not in part:
            outcomes.append(Outcome(part["part"], found["figures"][begin:end], part["seconds"]))
        begin = end
    return outcomes


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found | {"commit": done.stdout.strip() or "unknown"}


def card_name(figures: list[dict[str, Any]]) -> str:
    """The card's name as a part of a file's name."""
    name = next((figure["name"] for figure in figures if figure["figure"] == "card"), "unknown")
    return re.sub(r"\W+", "-", name).strip("-")


def write(now: dict[str, Any], path: Path, earlier: Path | None) -> Path:
    """Writes the result, and then removes the `earlier` one of this run if it has another name."""
    making = path.with_suffix(".making")
    making.write_text(json.dumps(now, indent=1) + "\n")
    making.rename(path)
    if earlier and earlier != path:
        earlier.unlink()
    return path


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the part is stopped, and what it found is written
    made = parser(__doc__)
    made.add_argument("--minutes", type=float, default=45.0, help="for all parts together (default: 45)")
    made.add_argument("--only", nargs="+", metavar="SCRIPT", help="run only these scripts, such as: ceilings steps")
    made.add_argument("--resume", type=Path, help="go on with this result of the same card: run what it lacks")
    made.add_argument("--results", type=Path, help="where the result is written (default: perf/results)")
    arguments = made.parse_args()
    results = arguments.results or (arguments.folder / "results" if arguments.fake else RESULTS)
    results.mkdir(parents=True, exist_ok=True)
    further = ["--folder", str(arguments.folder.absolute()), *(["--fake"] if arguments.fake else [])]
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%SZ")
    end = time.monotonic() + 60 * arguments.minutes
    outcomes = earlier(arguments.resume) if arguments.resume else []
    done = {outcome.part for outcome in outcomes}
    left_out: list[str] = []
    written: Path | None = None
    for part in PLAN:
        is_named = not arguments.only or Path(part.script).stem in arguments.only
        if not is_named or part.name in done or (arguments.fake and not part.if_fake):
            continue
        is_ended = bool(outcomes) and outcomes[-1].is_last
        if is_ended or (left := end - time.monotonic()) < LEAST_S:
            left_out.append(part.name)
        else:
            print(f"{part.name} ({left / 60:.1f} minutes left)", file=sys.stderr, flush=True)
            outcomes.append(run(part, further, left))
            print(json.dumps(outcomes[-1].summary), file=sys.stderr, flush=True)
        now = result(outcomes, left_out, fake=arguments.fake)
        written = write(now, results / f"gpu-{stamp}-{card_name(now['figures'])}.json", written)
    if written is None:
        sys.exit("Nothing was run: --only names no script of the plan, or --resume has all of them.")
    print(written)
    if not arguments.fake and results == RESULTS:
        page.write()
    sys.exit(1 if any(outcome.failed for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
