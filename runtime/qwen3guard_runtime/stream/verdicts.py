"""From Stream's logits to levels, categories and probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from qwen3guard_contract.labels import RISK_ORDER, Category, RiskLevel

from qwen3guard_runtime.engine.logits import Floats, softmax


@dataclass(frozen=True)
class TokenJudgements:
    """Levels and likeliest categories of some tokens with their probabilities [tokens, 3] and [tokens, 8 or 9]."""

    risk: tuple[RiskLevel, ...]
    likeliest: tuple[Category, ...]
    risk_probabilities: Floats
    category_probabilities: Floats

    @property
    def category(self) -> tuple[Category | None, ...]:
        """None where the level is Safe, since it is not trained there."""
        pairs = zip(self.risk, self.likeliest, strict=True)
        return tuple(None if level is RiskLevel.SAFE else category for level, category in pairs)

    def rows(self) -> Iterator[tuple[RiskLevel, Category, float]]:
        """What a policy decides by: of each token its level, its likeliest category, and 1 - P(Safe).

        The last in float64, as whoever reads the probabilities off the wire has it.
        """
        unsafe = 1 - self.risk_probabilities[:, RISK_ORDER.index(RiskLevel.SAFE)].astype(np.float64)
        return zip(self.risk, self.likeliest, unsafe.tolist(), strict=True)


def judge(risk_logits: Floats, category_logits: Floats, order: Sequence[Category]) -> TokenJudgements:
    """Logits [tokens, 3] and [tokens, len(order)] of either pair of heads; both are read through a softmax."""
    risk, category = softmax(risk_logits), softmax(category_logits)
    levels = tuple(RISK_ORDER[index] for index in risk.argmax(axis=-1))
    return TokenJudgements(levels, tuple(order[index] for index in category.argmax(axis=-1)), risk, category)
