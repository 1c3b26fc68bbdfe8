"""The policy of an operator or a session: how its mode, debounce, categories and thresholds turn the guard's judgements
into decisions."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.labels import Category, RiskLevel
from qwen3guard_contract.messages import CONTEXT
from qwen3guard_contract.thresholds import Judgement, Thresholds, categories, judged_windows

DEFAULT_DEBOUNCE = 2
"""A token is flagged when it and the token before it are both not Safe: Qwen3Guard report, arXiv 2510.14276, 4.4."""
LARGEST_DEBOUNCE = CONTEXT
"""No context has room for a longer run of tokens, so a larger debounce would never flag."""


@dataclass(frozen=True)
class Policy:
    """Which judgements are unsafe, and how many unsafe tokens in a row flag a stream.

    With `strict`, Controversial counts as unsafe. `thresholds`, if there are any, decide by probability instead of by
    level. Only judgements of the categories in `blocked` can be unsafe. `debounce` applies to the tokens of a response;
    a prompt is one judgement. A policy replaces the server's own in every part. Raises InvalidRequest for a debounce
    that is not a whole number from 1 to LARGEST_DEBOUNCE, for no category, and for values of the wrong type.
    """

    strict: bool = True
    debounce: int = DEFAULT_DEBOUNCE
    blocked: frozenset[Category] = frozenset(Category)
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.strict, bool):
            raise InvalidRequest("The mode of a policy must be True for strict or False for loose.")
        if type(self.debounce) is not int:
            raise InvalidRequest("The debounce must be a whole number of tokens.")
        if not isinstance(self.blocked, Collection) or not all(isinstance(each, Category) for each in self.blocked):
            raise InvalidRequest("What a policy blocks must be of Category.")
        object.__setattr__(self, "blocked", frozenset(self.blocked))  # a caller's own collection may change later
        if not self.blocked:
            raise InvalidRequest("A policy must block at least one category; to flag nothing, set a threshold of 1.")
        if self.thresholds is not None and not isinstance(self.thresholds, Thresholds):
            raise InvalidRequest("The thresholds of a policy must be Thresholds.")
        if not 1 <= self.debounce <= LARGEST_DEBOUNCE:
            raise InvalidRequest(f"The debounce must be from 1 to {LARGEST_DEBOUNCE} tokens.")

    def is_unsafe_level(self, level: RiskLevel, category: Category | None, *, strict: bool | None = None) -> bool:
        """Whether a judgement is unsafe by its level; `strict` overrides the policy's own mode."""
        return level.is_unsafe(strict=self.strict if strict is None else strict) and category in self.blocked

    def is_unsafe(self, level: RiskLevel, category: Category, risk: float) -> bool:
        """Whether a judgement is unsafe by the thresholds, or by its level if there are none.

        `risk` is 1 - P(Safe). `category` is the one that the judgement names, or the likeliest if it names none.
        """
        if self.thresholds is None:
            return self.is_unsafe_level(level, category)
        return category in self.blocked and self.thresholds.is_unsafe_risk(risk, category)

    def unsafe_categories(self, judgement: Judgement) -> set[Category]:
        """The categories that make one judgement unsafe: of a conversation, of a prompt, or of a single token.

        Those of all its windows, if it was judged in such.
        """
        return {
            category
            for each in judged_windows(judgement)
            for category in categories(each)
            if self.is_unsafe(each.severity, category, 1 - each.severity_probabilities[RiskLevel.SAFE])
        }


def runs(unsafe: Iterable[bool], *, before: int = 0) -> list[int]:
    """Returns the run of each token: the number of unsafe tokens in a row up to it. A token is flagged if its run is at
    least a policy's `debounce`.

    `before` is the run of the token before the first of these.
    """
    counted = []
    run = before
    for is_unsafe in unsafe:
        run = run + 1 if is_unsafe else 0
        counted.append(run)
    return counted
