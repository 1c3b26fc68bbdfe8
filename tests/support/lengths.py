"""How long a trial is: short in `make test`, at full length in `make trials`, whose figures the documents have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

FULL = os.environ.get("TRIALS") == "full"


First = TypeVar("First")
Second = TypeVar("Second")


def times(short: int, full: int) -> int:
    return full if FULL else short


def pairs(first: Sequence[First], second: Sequence[Second], one_in: int) -> list[tuple[First, Second]]:
    """Each of `first` with each of `second`; in short one in `one_in` of them, so that each is in about as many."""
    step = times(one_in, 1)
    return [
        (one, other)
        for row, one in enumerate(first)
        for column, other in enumerate(second)
        if (row + column) % step == 0
    ]
