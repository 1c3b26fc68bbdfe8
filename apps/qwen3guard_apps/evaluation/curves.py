"""Every threshold at once: ROC and precision-recall of a score that is higher where a row is riskier. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen3guard_apps.evaluation.intervals import FloatArray64


@dataclass(frozen=True)
class Curve:
    """One point for each distinct score, falling: what a decision by score >= threshold gives.

    `thresholds`, `recall` (the true-positive rate), `false_positive_rate` and `precision` are [points].
    """

    thresholds: FloatArray64
    recall: FloatArray64
    false_positive_rate: FloatArray64
    precision: FloatArray64

    @property
    def area(self) -> float:
        """Under the ROC: the chance that an unsafe row scores above a safe one, ties counted as half."""
        recall = np.concatenate([[0.0], self.recall])
        false = np.concatenate([[0.0], self.false_positive_rate])
        return float((np.diff(false) * (recall[1:] + recall[:-1]) / 2).sum())

    @property
    def average_precision(self) -> float:
        """The precision at each point, weighted by the recall it adds; nothing is interpolated."""
        return float((np.diff(self.recall, prepend=0.0) * self.precision).sum())


def curve(scores: FloatArray64, unsafe: npt.NDArray[np.bool_]) -> Curve:
    """Both [rows], with rows of both classes."""
    order = np.argsort(-scores, kind="stable")
    ranked, labels = scores[order], unsafe[order]
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    hits = np.cumsum(labels)[last]
    flagged = last + 1
    safe = len(labels) - hits[-1]
    return Curve(ranked[last], hits / hits[-1], (flagged - hits) / safe, hits / flagged)


def area(scores: FloatArray64, unsafe: npt.NDArray[np.bool_]) -> float:
    return curve(scores, unsafe).area


def average_precision(scores: FloatArray64, unsafe: npt.NDArray[np.bool_]) -> float:
    return curve(scores, unsafe).average_precision


def choose(safe_scores: FloatArray64, false_positive_rate: float) -> float:
    """The least t such that score > t holds for at most that share of `safe_scores` [rows], which must not be empty.

    Midway to the next score above, so that rounding a score does not move it across.
    """
    ranked = np.sort(safe_scores)[::-1]
    allowed = int(false_positive_rate * len(ranked) + 1e-9)
    if allowed >= len(ranked):
        return 0.0
    threshold = ranked[allowed]
    above = ranked[ranked > threshold]
    return float((threshold + (above.min() if len(above) else 1.0)) / 2)
