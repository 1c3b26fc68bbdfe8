"""The ROC and precision-recall curves of a score that is higher for a riskier row, over all thresholds. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen3guard_apps.evaluation.intervals import FloatArray64


@dataclass(frozen=True)
class Curve:
    """The rates of the decision score >= threshold, one point for each distinct score, in falling order.

    `thresholds`, `recall` (the true-positive rate), `false_positive_rate` and `precision` are [points].
    """

    thresholds: FloatArray64
    recall: FloatArray64
    false_positive_rate: FloatArray64
    precision: FloatArray64

    @property
    def area(self) -> float:
        """The area under the ROC: the chance that an unsafe row scores above a safe one, where a tie counts as half."""
        recall = np.concatenate([[0.0], self.recall])
        false = np.concatenate([[0.0], self.false_positive_rate])
        return float((np.diff(false) * (recall[1:] + recall[:-1]) / 2).sum())

    @property
    def average_precision(self) -> float:
        """The sum over the points of the precision times the recall that the point adds; nothing is interpolated."""
        return float((np.diff(self.recall, prepend=0.0) * self.precision).sum())


def curve(scores: FloatArray64, unsafe: npt.NDArray[np.bool_]) -> Curve:
    """The curve of `scores` against the labels `unsafe`, both [rows]; there must be rows of both classes."""
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


def choose(scores: FloatArray64, unsafe: npt.NDArray[np.bool_], false_positive_rate: float) -> float:
    """The least threshold t such that score > t holds for at most that share of the safe rows, of which there must be
    one. `scores` and `unsafe` are [rows].

    It lies midway between the least such score and the next one above, of a safe or an unsafe row, so that rounding
    does not move a score across.
    """
    safe_scores = scores[~unsafe]
    ranked = np.sort(safe_scores)[::-1]
    allowed = int(false_positive_rate * len(ranked) + 1e-9)
    if allowed >= len(ranked):
        return 0.0
    threshold = ranked[allowed]
    above = scores[scores > threshold]
    return float((threshold + (above.min() if len(above) else 1.0)) / 2)
