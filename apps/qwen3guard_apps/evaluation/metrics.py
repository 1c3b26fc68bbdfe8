"""The rates of decisions against labels, with intervals. Pure.

The positive class is unsafe. A rate whose denominator is 0 is None; upstream's code prints 0 for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen3guard_apps.evaluation.intervals import Interval, f1_interval, wilson

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Confusion:
    """How many rows are unsafe and flagged, safe and flagged, unsafe and not flagged, safe and not flagged."""

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of(cls, unsafe: BoolArray, flagged: BoolArray) -> Confusion:
        """Counts labels and decisions, both bool [rows]."""
        cells = ((unsafe, flagged), (~unsafe, flagged), (unsafe, ~flagged), (~unsafe, ~flagged))
        return cls(*(int((label & decision).sum()) for label, decision in cells))

    @property
    def rows(self) -> int:
        return self.tp + self.fp + self.fn + self.tn

    @property
    def precision(self) -> float | None:
        return share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        return share(self.tp, self.tp + self.fn)

    @property
    def false_positive_rate(self) -> float | None:
        return share(self.fp, self.fp + self.tn)

    @property
    def f1(self) -> float | None:
        """2 tp / (2 tp + fp + fn), the harmonic mean of precision and recall."""
        return share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    def as_dict(self) -> dict[str, Any]:
        """The counts, and each rate with its 95 % interval: the bootstrap's for F1, Wilson's for the others."""
        return {
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
            "tn": self.tn,
            "f1": measured(self.f1, f1_interval(self.tp, self.fp, self.fn, self.tn)),
            "precision": rate(self.tp, self.tp + self.fp),
            "recall": rate(self.tp, self.tp + self.fn),
            "false_positive_rate": rate(self.fp, self.fp + self.tn),
        }


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def rate(part: int, whole: int) -> dict[str, Any]:
    return measured(share(part, whole), wilson(part, whole)) | {"of": whole}


def measured(value: float | None, interval: Interval | None) -> dict[str, Any]:
    return {"value": value, "interval": interval}
