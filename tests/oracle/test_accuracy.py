"""How near the demo guards in eight bits are to themselves in fp32: the bounds that a guard is held to.

test_other_cpus.py shows that another CPU gives the same bits, so what holds here holds there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from accuracy import FIRM, level_probabilities
from qwen3guard_export import export
from support.places import DEMO, ROOT

LARGE = ROOT.parent / "shared" / "data" / "guard_dev_prompts.jsonl"
"""Public prompts, where a checkout has them beside it."""


def texts() -> list[str]:
    everyday = [json.loads(line) for line in (DEMO / "everyday.jsonl").read_text().splitlines()]
    found = [text for row in everyday for text in (row["prompt"], row.get("response")) if text]
    if LARGE.is_file():
        found += [json.loads(line)["prompt"] for line in LARGE.read_text().splitlines()[::2]]
    return found


def judged(variant: str, weights: str, folder: Path) -> np.ndarray:
    export(str(DEMO / variant), folder / weights, weights=weights, say=lambda _: None)
    return level_probabilities(folder / weights / f"{variant}_guard" / "1", texts())


@pytest.mark.parametrize(("variant", "mean", "largest"), [("gen", 0.002, 0.03), ("stream", 0.003, 0.1)])
def test_eight_bits_are_near_fp32(variant: str, mean: float, largest: float, tmp_path: Path) -> None:
    exact, found = (judged(variant, weights, tmp_path) for weights in ("fp32", "dq8r"))
    off = np.abs(found - exact).max(axis=1)
    assert 0 < off.mean() <= mean
    assert off.max() <= largest
    second, first = np.sort(exact, axis=1)[:, -2:].T
    firm = first - second > FIRM
    assert firm.sum() > 20
    assert not (found.argmax(axis=1) != exact.argmax(axis=1))[firm].any()
