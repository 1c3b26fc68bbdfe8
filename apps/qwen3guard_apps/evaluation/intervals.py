"""95 % confidence intervals: Wilson's for a share of rows, the percentile bootstrap over rows for all else. Pure.

The bootstrap knows nothing beyond its rows: of few rows, or of rows without an error, its interval would look certain.
It is None there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Interval = tuple[float, float]
FloatArray64 = npt.NDArray[np.float64]

Z = 1.959963984540054
"""The normal distribution's 97.5 % point."""
RESAMPLES = 1000
SEED = 0
LEAST_ROWS = 10
"""A bootstrap interval needs so many rows of each class that it is about."""


def wilson(part: int, whole: int) -> Interval | None:
    """Wilson's interval of the share `part` of `whole`; None where `whole` is 0. E. B. Wilson, JASA 22 (1927), 209."""
    if not whole:
        return None
    share = part / whole
    middle = share + Z**2 / (2 * whole)
    spread = Z * (share * (1 - share) / whole + Z**2 / (4 * whole**2)) ** 0.5
    scale = 1 + Z**2 / whole
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def f1_interval(tp: int, fp: int, fn: int, tn: int) -> Interval | None:
    """The bootstrap interval of F1 over resampled rows; None with fewer than LEAST_ROWS unsafe rows, and where it would
    have no width.

    F1 depends on the four counts alone, so these are drawn, from a multinomial distribution.
    """
    cells = np.array([tp, fp, fn, tn])
    if tp + fn < LEAST_ROWS:
        return None
    drawn = np.random.default_rng(SEED).multinomial(cells.sum(), cells / cells.sum(), RESAMPLES)
    below = 2 * drawn[:, 0] + drawn[:, 1] + drawn[:, 2]
    return _percentiles(2 * drawn[:, 0][below > 0] / below[below > 0])


def bootstrap(
    statistic: Callable[[FloatArray64, npt.NDArray[np.bool_]], float],
    scores: FloatArray64,
    unsafe: npt.NDArray[np.bool_],
) -> Interval | None:
    """The bootstrap interval of `statistic` of `scores` and `unsafe`, both [rows], over resampled rows.

    Resamples with rows of one class alone are left out. None with fewer than LEAST_ROWS rows of a class, and where
    the interval would have no width.
    """
    source = np.random.default_rng(SEED)
    values = []
    for _ in range(RESAMPLES if LEAST_ROWS <= unsafe.sum() <= len(unsafe) - LEAST_ROWS else 0):
        chosen = source.integers(0, len(unsafe), len(unsafe))
        if 0 < unsafe[chosen].sum() < len(unsafe):
            values.append(statistic(scores[chosen], unsafe[chosen]))
    return _percentiles(np.array(values)) if values else None


def _percentiles(values: FloatArray64) -> Interval | None:
    low, high = np.percentile(values, [2.5, 97.5])
    return (float(low), float(high)) if low < high else None
