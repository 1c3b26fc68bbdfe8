"""When a served stream agrees with the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BOUND = 1e-4
"""Of the logits' scale: the fp32 export's. Log-probabilities differ by at most twice what logits do."""


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def agrees(probabilities: Sequence[Mapping[Any, float]], logits: np.ndarray) -> None:
    found = np.log(np.array([list(row.values()) for row in probabilities], np.float64))
    assert found.shape == logits.shape
    assert np.abs(found - log_probabilities(logits)).max() <= 2 * BOUND * np.abs(logits).max()
