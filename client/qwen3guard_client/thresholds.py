"""Decisions by probability: unsafe where 1 - P(Safe) is above a threshold, in place of strict and loose.

Made of the probabilities that every answer carries, so it needs nothing of the server. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3guard_client.errors import InvalidRequest
from qwen3guard_client.labels import Category, RiskLevel
from qwen3guard_client.policy import DEBOUNCE
from qwen3guard_client.verdict import Classification, PromptVerdict, TokenVerdict

Judgement = Classification | PromptVerdict | TokenVerdict


@dataclass(frozen=True)
class Thresholds:
    """Unsafe where 1 - P(Safe) > t; t is that of the judgement's category, or else `default`.

    The categories of a judgement are those that it names, or the likeliest one where it names none (its level is
    Safe, but barely); with several, one above its threshold is enough. t = 1 lets a category pass. `debounce` tokens
    in a row must be above their thresholds before a stream is flagged. Raises InvalidRequest for a t outside 0 to 1
    or a debounce below 1.
    """

    default: float = 0.5
    categories: Mapping[Category, float] = field(default_factory=dict)
    debounce: int = DEBOUNCE

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", dict(self.categories))
        for value in (self.default, *self.categories.values()):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InvalidRequest(f"The threshold {value!r} is no number from 0 to 1.")
        if isinstance(self.debounce, bool) or not isinstance(self.debounce, int) or self.debounce < 1:
            raise InvalidRequest(f"The debounce is {self.debounce!r} tokens; it must be a whole number of at least 1.")

    def decides(self, found: Judgement) -> bool:
        """Whether one judgement, of a conversation, a prompt or a token alone, is unsafe."""
        risk = 1 - found.severity_probabilities[RiskLevel.SAFE]
        return any(risk > self.categories.get(category, self.default) for category in categories(found))

    def runs(self, tokens: Iterable[TokenVerdict], *, before: int = 0) -> list[int]:
        """For each token, how many in a row up to it are unsafe; it is flagged from `debounce` on.

        `before` is the run at the token before the first of them.
        """
        found = []
        run = before
        for token in tokens:
            run = run + 1 if self.decides(token) else 0
            found.append(run)
        return found

    def flagged(self, tokens: Sequence[TokenVerdict]) -> TokenVerdict | None:
        """The first token of a response that is flagged, or None."""
        runs = zip(tokens, self.runs(tokens), strict=True)
        return next((token for token, run in runs if run >= self.debounce), None)

    def as_dict(self) -> dict[str, Any]:
        named = {category.value: value for category, value in self.categories.items()}
        return {"default": self.default, "categories": named, "debounce": self.debounce}

    @classmethod
    def read(cls, path: Path) -> Thresholds:
        """From JSON as `as_dict` gives it; what is missing has its default. Raises InvalidRequest."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            named = {Category(name): value for name, value in raw.pop("categories", {}).items()}
            return cls(categories=named, **raw)
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from None
        except (ValueError, TypeError, AttributeError):
            raise InvalidRequest(f"{path} holds no thresholds.") from None


def categories(found: Judgement) -> tuple[Category, ...]:
    """Those that a judgement names, or else the likeliest."""
    named = found.categories if isinstance(found, Classification) else (found.category,)
    chosen = tuple(category for category in named if category is not None)
    if chosen:
        return chosen
    likely = {category: value for category, value in found.category_probabilities.items() if category is not None}
    return (max(likely, key=lambda category: likely[category]),)
