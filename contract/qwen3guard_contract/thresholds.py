"""Decisions by probability: unsafe where 1 - P(Safe) is above a threshold, in place of strict and loose. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.labels import QUERY_CATEGORY_ORDER, AnswerStatus, Category, RiskLevel
from qwen3guard_contract.verdict import Classification, PromptVerdict, TokenVerdict

Judgement = Classification | PromptVerdict | TokenVerdict
LONGEST_JSON = 2000
"""Bytes of thresholds as JSON; one for each category that there is takes fewer than half."""
EXAMPLE = '{"default": 0.5, "categories": {"Violent": 0.3}}'


@dataclass(frozen=True)
class Thresholds:
    """Unsafe where 1 - P(Safe) > t; t is that of the judgement's category, or else `default`.

    The categories of a judgement are those that it names, or the likeliest one where it names none (its level is
    Safe, but barely), or all where Gen's answer broke off before it named them; with several, one above its threshold
    is enough. t = 1 lets a category pass. How many tokens in a row must be above theirs before a stream is flagged is
    the policy's `debounce`. Raises InvalidRequest for a t outside 0 to 1.
    """

    default: float = 0.5
    categories: Mapping[Category, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", dict(self.categories))
        for name, value in (("default", self.default), *((each.value, t) for each, t in self.categories.items())):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InvalidRequest(f"The threshold {name!r} must be a number from 0 to 1.")

    def is_unsafe_risk(self, risk: float, category: Category) -> bool:
        """Whether `risk`, 1 - P(Safe), is above the threshold of `category`."""
        return risk > self.categories.get(category, self.default)

    def is_unsafe(self, found: Judgement) -> bool:
        """Whether one judgement, of a conversation, a prompt or a token alone, is unsafe."""
        risk = 1 - found.severity_probabilities[RiskLevel.SAFE]
        return any(self.is_unsafe_risk(risk, category) for category in categories(found))

    def as_dict(self) -> dict[str, Any]:
        return {"default": self.default, "categories": {each.value: t for each, t in self.categories.items()}}

    @classmethod
    def parse(cls, text: bytes) -> Thresholds:
        """From JSON as `as_dict` gives it; what is missing has its default. Raises InvalidRequest."""
        if len(text) > LONGEST_JSON:
            raise InvalidRequest(f"The thresholds have {len(text)} bytes; there may be {LONGEST_JSON}.")
        try:
            raw = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            raw = None
        named = raw.get("categories", {}) if isinstance(raw, dict) else None
        if not isinstance(named, dict) or raw.keys() - {"default", "categories"}:
            raise InvalidRequest(f"The thresholds must be JSON such as {EXAMPLE}, with no other fields.")
        if named.keys() - {each.value for each in Category}:
            known = ", ".join(each.value for each in Category)
            raise InvalidRequest(f"The thresholds name a category that does not exist; there are: {known}.")
        return cls(raw.get("default", cls.default), {Category(name): t for name, t in named.items()})

    @classmethod
    def read(cls, path: Path) -> Thresholds:
        """From a file of such JSON. Raises InvalidRequest."""
        try:
            return cls.parse(path.read_bytes())
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from None
        except InvalidRequest as error:
            raise InvalidRequest(f"{path}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where it has two fields of one name: either may be meant."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("two fields of one name")
    return dict(pairs)


def categories(found: Judgement) -> tuple[Category, ...]:
    """Those that a judgement names, or else the likeliest; all where an answer broke off and they cannot be known."""
    named = found.categories if isinstance(found, Classification) else (found.category,)
    chosen = tuple(category for category in named if category is not None)
    if chosen:
        return chosen
    if isinstance(found, Classification) and found.answer_status is not AnswerStatus.COMPLETE:
        return QUERY_CATEGORY_ORDER
    likely = {category: value for category, value in found.category_probabilities.items() if category is not None}
    return (max(likely, key=lambda category: likely[category]),)
