"""The logits of a pass: whether they are finite, and their softmax."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import InternalError

Floats = npt.NDArray[np.float32]


def not_finite(logits: Iterable[Floats]) -> InternalError | None:
    """Returns an error if any number in the arrays is NaN or infinite, otherwise None.

    Without this check `argmax` would still choose one of the numbers, for a level that the model has not given.
    """
    if all(np.isfinite(array).all() for array in logits):
        return None
    return InternalError("The model's numbers are not finite for this conversation; it cannot be judged.")


def softmax(logits: Floats) -> Floats:
    """The softmax over the last axis, float32. It is computed in float64."""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)
