"""Turns Stream's logits into levels, categories and probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from qwen3guard_contract.labels import RISK_ORDER, Category, RiskLevel

from qwen3guard_runtime.engine.logits import Floats, softmax


@dataclass(frozen=True)
class TokenJudgements:
    """The levels and likeliest categories of some tokens, with the probabilities of all levels, float32 [tokens, 3],
    and of all categories, float32 [tokens, 8 or 9]."""

    risk: tuple[RiskLevel, ...]
    likeliest: tuple[Category, ...]
    risk_probabilities: Floats
    category_probabilities: Floats

    @property
    def category(self) -> tuple[Category | None, ...]:
        """The likeliest category of each token, or None if its level is Safe, for which the head is not trained."""
        pairs = zip(self.risk, self.likeliest, strict=True)
        return tuple(None if level is RiskLevel.SAFE else category for level, category in pairs)

    def rows(self) -> Iterator[tuple[RiskLevel, Category, float]]:
        """The arguments of `Policy.is_unsafe` for each token: its level, its likeliest category, and 1 - P(Safe).

        1 - P(Safe) is computed in float64, so that it equals what a client computes from the float32 on the wire.
        """
        unsafe = 1 - self.risk_probabilities[:, RISK_ORDER.index(RiskLevel.SAFE)].astype(np.float64)
        return zip(self.risk, self.likeliest, unsafe.tolist(), strict=True)


def judge(risk_logits: Floats, category_logits: Floats, order: Sequence[Category]) -> TokenJudgements:
    """Judges tokens by the logits of a pair of heads: float32 [tokens, 3] and [tokens, len(order)].

    The probabilities are a softmax of each.
    """
    risk, category = softmax(risk_logits), softmax(category_logits)
    levels = tuple(RISK_ORDER[index] for index in risk.argmax(axis=-1))
    return TokenJudgements(levels, tuple(order[index] for index in category.argmax(axis=-1)), risk, category)
