"""Decisions by probability instead of by strict or loose mode: unsafe if 1 - P(Safe) is above a threshold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.labels import QUERY_CATEGORY_ORDER, AnswerStatus, Category, RiskLevel
from qwen3guard_contract.small_file import read_small_file
from qwen3guard_contract.verdict import Classification, PromptVerdict, TokenVerdict

Judgement = Classification | PromptVerdict | TokenVerdict
LONGEST_JSON = 2000
"""The most bytes that thresholds may have as JSON. A threshold for each category takes less than half of it."""
EXAMPLE = '{"default": 0.5, "categories": {"Violent": 0.3}}'


@dataclass(frozen=True)
class Thresholds:
    """A judgement is unsafe if 1 - P(Safe) > t. t is the threshold of its category, or `default` if that has none.

    The categories of a judgement are those that it names. If it names none, as a Safe one does, its category is the
    likeliest one; if Gen's answer broke off before it named any, it has all categories. One category above its
    threshold is enough. No judgement is above t = 1. For a stream, the policy's `debounce` says how many tokens in a
    row must be unsafe. Raises InvalidRequest for a t that is not from 0 to 1, and for a key that is not a Category.
    """

    default: float = 0.5
    categories: Mapping[Category, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.categories, Mapping) or not all(isinstance(each, Category) for each in self.categories):
            raise InvalidRequest("The thresholds of categories must be a mapping whose keys are of Category.")
        object.__setattr__(self, "categories", dict(self.categories))
        for name, value in (("default", self.default), *((each.value, t) for each, t in self.categories.items())):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InvalidRequest(f"The threshold {name!r} must be a number from 0 to 1.")

    def is_unsafe_risk(self, risk: float, category: Category) -> bool:
        """Whether `risk`, 1 - P(Safe), is above the threshold of `category`."""
        return risk > self.categories.get(category, self.default)

    def is_unsafe(self, judgement: Judgement) -> bool:
        """Whether one judgement is unsafe: of a conversation, of a prompt, or of a single token.

        A conversation that was judged in windows is unsafe if one of them is.
        """
        return any(
            self.is_unsafe_risk(1 - each.severity_probabilities[RiskLevel.SAFE], category)
            for each in judged_windows(judgement)
            for category in categories(each)
        )

    def as_dict(self) -> dict[str, Any]:
        return {"default": self.default, "categories": {each.value: t for each, t in self.categories.items()}}

    @classmethod
    def parse(cls, text: bytes) -> Thresholds:
        """Reads JSON in UTF-8 of the form that `as_dict` returns. One field may be missing, and then has its default.

        Raises InvalidRequest, also if there is no threshold in it.
        """
        if len(text) > LONGEST_JSON:
            raise InvalidRequest(f"The thresholds have {len(text)} bytes; there may be {LONGEST_JSON}.")
        try:
            raw = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError):
            raw = None
        named = raw.get("categories", {}) if isinstance(raw, dict) else None
        if not isinstance(named, dict) or raw.keys() - {"default", "categories"}:
            raise InvalidRequest(f"The thresholds must be JSON such as {EXAMPLE}, with no other fields.")
        if named.keys() - {each.value for each in Category}:
            known = ", ".join(each.value for each in Category)
            raise InvalidRequest(f"The thresholds name a category that does not exist; there are: {known}.")
        if not named and "default" not in raw:
            raise InvalidRequest(f"The thresholds hold no threshold; they must be JSON such as {EXAMPLE}.")
        return cls(raw.get("default", cls.default), {Category(name): t for name, t in named.items()})

    @classmethod
    def read(cls, path: Path) -> Thresholds:
        """Reads a file with the JSON that `parse` takes. Raises InvalidRequest."""
        try:
            return cls.parse(read_small_file(path))
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from None
        except InvalidRequest as error:
            raise InvalidRequest(f"{path}: {error}") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Raises ValueError if two fields have the same name, since either may be meant."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("two fields of one name")
    return dict(pairs)


def judged_windows(judgement: Judgement) -> tuple[Judgement, ...]:
    """The judgements of its windows, if it was judged in such; else the judgement itself."""
    found = judgement.windows if isinstance(judgement, Classification) else ()
    return tuple(window.verdict for window in found) or (judgement,)


def categories(judgement: Judgement) -> tuple[Category, ...]:
    """The categories by which a judgement is decided: those that it names, or the likeliest if it names none.

    All categories, if Gen's answer is not complete and names none.
    """
    named = judgement.categories if isinstance(judgement, Classification) else (judgement.category,)
    chosen = tuple(category for category in named if category is not None)
    if chosen:
        return chosen
    if isinstance(judgement, Classification) and judgement.answer_status is not AnswerStatus.COMPLETE:
        return QUERY_CATEGORY_ORDER
    probabilities = {
        category: value for category, value in judgement.category_probabilities.items() if category is not None
    }
    return (max(probabilities, key=lambda category: probabilities[category]),)
