"""From Stream's logits to levels, categories and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from qwen3guard_client.labels import RISK_ORDER, Category, RiskLevel

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Judgement:
    """Levels and categories of some tokens with their probabilities [tokens, 3] and [tokens, 8 or 9].

    A category is None where the level is Safe, since it is not trained there.
    """

    risk: tuple[RiskLevel, ...]
    category: tuple[Category | None, ...]
    risk_probabilities: Floats
    category_probabilities: Floats

    def pairs(self) -> list[tuple[RiskLevel, Category | None]]:
        return list(zip(self.risk, self.category, strict=True))


def judge(risk_logits: Floats, category_logits: Floats, order: Sequence[Category]) -> Judgement:
    """Logits [tokens, 3] and [tokens, len(order)] of either pair of heads; both are read through a softmax."""
    risk, category = softmax(risk_logits), softmax(category_logits)
    levels = tuple(RISK_ORDER[index] for index in risk.argmax(axis=-1))
    names = tuple(
        None if level is RiskLevel.SAFE else order[index]
        for level, index in zip(levels, category.argmax(axis=-1), strict=True)
    )
    return Judgement(levels, names, risk, category)


def softmax(logits: Floats) -> Floats:
    """Over the last axis; float32, computed in float64."""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)
