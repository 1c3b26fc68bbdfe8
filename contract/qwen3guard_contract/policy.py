"""From levels to decisions: what an operator's mode, debounce and categories make of the guard's judgements."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.labels import Category, RiskLevel
from qwen3guard_contract.thresholds import Judgement, Thresholds, categories

DEFAULT_DEBOUNCE = 2
"""Flag a token when it and the one before are both not Safe: Qwen3Guard report, arXiv 2510.14276, 4.4."""


@dataclass(frozen=True)
class Policy:
    """What counts as unsafe, and how many tokens in a row must count before a stream is flagged.

    `strict` counts Controversial as unsafe; `thresholds`, where there are some, decide by probability in its place.
    `blocked` names the categories that count; what the guard files under another category passes. `debounce` concerns
    the tokens of a response; a prompt is one judgement. A policy replaces the server's own in every part. Raises
    InvalidRequest for a debounce that is no whole number from 1 on, and for what is no Category or no Thresholds.
    """

    strict: bool = True
    debounce: int = DEFAULT_DEBOUNCE
    blocked: frozenset[Category] = frozenset(Category)
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        if type(self.debounce) is not int:
            raise InvalidRequest("The debounce must be a whole number of tokens.")
        if not isinstance(self.blocked, Collection) or not all(isinstance(each, Category) for each in self.blocked):
            raise InvalidRequest("What a policy blocks must be of Category.")
        if self.thresholds is not None and not isinstance(self.thresholds, Thresholds):
            raise InvalidRequest("The thresholds of a policy must be Thresholds.")
        if self.debounce < 1:
            raise InvalidRequest(f"The debounce is {self.debounce} tokens; it must be at least 1.")

    def is_unsafe_level(self, level: RiskLevel, category: Category | None, *, strict: bool | None = None) -> bool:
        """Whether a judgement is unsafe by its level; `strict` overrides the policy's own mode."""
        return level.is_unsafe(strict=self.strict if strict is None else strict) and category in self.blocked

    def is_unsafe(self, level: RiskLevel, category: Category, risk: float) -> bool:
        """Whether a judgement is unsafe by the thresholds, or else by its level.

        `risk` is 1 - P(Safe), and `category` the one it names, or the likeliest where it names none.
        """
        if self.thresholds is None:
            return self.is_unsafe_level(level, category)
        return category in self.blocked and self.thresholds.is_unsafe_risk(risk, category)

    def unsafe_categories(self, found: Judgement) -> set[Category]:
        """The categories by which one judgement, of a conversation, a prompt or a token alone, is unsafe."""
        risk = 1 - found.severity_probabilities[RiskLevel.SAFE]
        return {each for each in categories(found) if self.is_unsafe(found.severity, each, risk)}


def runs(unsafe: Iterable[bool], *, before: int = 0) -> list[int]:
    """For each token, how many tokens in a row up to it are unsafe; it is flagged from a policy's `debounce` on.

    `before` is the run at the token before the first of them, so a decision depends on nothing after it.
    """
    found = []
    run = before
    for each in unsafe:
        run = run + 1 if each else 0
        found.append(run)
    return found
