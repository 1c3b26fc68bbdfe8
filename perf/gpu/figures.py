"""What the measurements of this folder share: their arguments, their clock, and how a figure is said.

A figure is one JSON object on one line of standard output. It has the key `figure`, its name, `script`, and `fake`:
true if no GPU computed it, so that its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
for _name in ("tests", "contract", "client", "export", "runtime", "server", "apps", "perf"):
    sys.path.append(str(ROOT / _name))  # after what is installed, so that the project need not be

SIZES, VARIANTS, WEIGHTS = ("0.6B", "4B"), ("stream", "gen"), ("fp16", "bf16")
FOLDER = ROOT / "build" / "gpu"
_said: dict[str, Any] = {}


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every script. `doc` is the script's docstring."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--fake", action="store_true", help="run with small shapes and without a GPU; times mean nothing")
    made.add_argument(
        "--folder", type=Path, default=FOLDER, help="where checkpoints and graphs are made (default: build/gpu)"
    )
    return made


def read(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of this process. From now on its figures have its script's name, and `fake`."""
    arguments = made.parse_args()
    _said.update(script=Path(sys.argv[0]).stem, fake=arguments.fake)
    return arguments


def say(figure: str, **values: Any) -> None:
    """Prints one figure. Floats are rounded to six significant digits; one that is not finite is null."""
    rounded = {key: _rounded(value) if isinstance(value, float) else value for key, value in values.items()}
    print(json.dumps({"figure": figure} | rounded | _said), flush=True)


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def times(work: Callable[[], object], *, count: int, warm: int = 10, fake: bool = False) -> dict[str, float]:
    """The milliseconds that `work` takes: `ms` (the median), `ms_min`, `ms_p99`, and `count`.

    `work` must wait for what it began on the device. `fake` counts twice only.
    """
    if fake:
        count, warm = 2, 1
    for _ in range(warm):
        work()
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        taken.append(1e3 * (time.perf_counter() - began))
    return summary(taken)


def summary(taken: list[float]) -> dict[str, float]:
    """`ms` (the median), `ms_min`, `ms_p99` and `count` of times in milliseconds. Raises ValueError for none."""
    if not taken:
        raise ValueError("Nothing was timed.")
    ordered = sorted(taken)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return {
        "ms": median,
        "ms_min": ordered[0],
        "ms_p99": ordered[int(0.99 * (len(ordered) - 1))],
        "count": len(ordered),
    }
