"""What goes into a pass and comes out of it, as both guards treat it: ids that the model knows, and finite numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import InternalError, TokenOutOfRange

from qwen3guard_runtime.engine.runner import Ids

Floats = npt.NDArray[np.float32]


def check_ids(ids: Ids, vocab_size: int) -> None:
    """Raises TokenOutOfRange for ids that the model has no embedding for."""
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise TokenOutOfRange(f"A token id is outside the vocabulary of {vocab_size}.")


def not_finite(logits: Iterable[Floats]) -> InternalError | None:
    """What to answer where a number of any of the arrays is NaN or infinite: the largest of them would still be found,
    and stand for a level that the model has not given."""
    if all(np.isfinite(each).all() for each in logits):
        return None
    return InternalError("The model's numbers are not finite for this conversation; it cannot be judged.")


def softmax(logits: Floats) -> Floats:
    """Over the last axis; float32, computed in float64."""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)
