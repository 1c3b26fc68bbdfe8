"""Gen's answer: where in it each field is decided, between which tokens, and what the finished text says.

The answer is `Safety: X`, `Categories: Y[, Z]` and, for a response, `Refusal: Yes|No`, a line each. A field
is decided at the one token after its label, where the first tokens of its possible values all differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
from qwen3guard_client.errors import TokenizerMismatch, UnreadableAnswer
from qwen3guard_client.labels import (
    CATEGORY_ORDER,
    QUERY_CATEGORY_ORDER,
    REFUSAL_ORDER,
    RISK_ORDER,
    Category,
    Refusal,
    RiskLevel,
)

from qwen3guard_runtime.tokenizer import GuardTokenizer

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Field:
    """One line of the answer: its label and the possible values, in wire order."""

    label: str
    values: tuple[Enum | None, ...]

    def spell(self, value: Enum | None) -> str:
        return f"{self.label} {'None' if value is None else value.value}"


SAFETY = Field("Safety:", RISK_ORDER)
CATEGORIES = Field("Categories:", CATEGORY_ORDER)
REFUSAL = Field("Refusal:", REFUSAL_ORDER)


@dataclass(frozen=True)
class Verdict:
    """What an answer says; `probabilities` of each field that it holds, in wire order."""

    severity: RiskLevel
    categories: tuple[Category, ...]
    refusal: Refusal | None
    probabilities: Mapping[Field, Probabilities]

    def rows(self) -> Iterator[tuple[RiskLevel, Category, float]]:
        """What a policy decides by: for each category that is named, or else the likeliest, the level, the category
        and 1 - P(Safe)."""
        likeliest = QUERY_CATEGORY_ORDER[int(self.probabilities[CATEGORIES][:-1].argmax())]
        risk = 1 - float(self.probabilities[SAFETY][RISK_ORDER.index(RiskLevel.SAFE)])
        for category in self.categories or (likeliest,):
            yield self.severity, category, risk


class AnswerReader:
    """Reads answers with one checkpoint's tokenizer."""

    def __init__(self, tokenizer: GuardTokenizer) -> None:
        self._tokenizer = tokenizer
        self._candidates = {field: self._first_tokens(field) for field in (SAFETY, CATEGORIES, REFUSAL)}

    def _first_tokens(self, field: Field) -> list[int]:
        label = self._tokenizer.encode(field.label)
        spelled = [self._tokenizer.encode(field.spell(value)) for value in field.values]
        if any(ids[: len(label)] != label or len(ids) == len(label) for ids in spelled):
            raise TokenizerMismatch(f"The tokenizer merges {field.label!r} with what follows it.")
        first = [ids[len(label)] for ids in spelled]
        if len(set(first)) != len(first):
            raise TokenizerMismatch(f"The tokenizer starts two values of {field.label!r} with the same token.")
        return first

    def field_decided_after(self, text: str) -> Field | None:
        """The field whose value comes next after `text`, an answer's beginning."""
        line = text.rpartition("\n")[2]
        return next((field for field in self._candidates if field.label == line), None)

    def probabilities(self, field: Field, logits: npt.NDArray[np.float32]) -> Probabilities:
        """Softmax of `logits` [vocab] over the first tokens of the field's values; float32 [values]."""
        chosen = logits[self._candidates[field]].astype(np.float64)
        weights = np.exp(chosen - chosen.max())
        return np.asarray(weights / weights.sum(), np.float32)

    def text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def read(self, answer: str, *, response_mode: bool, decisions: Mapping[Field, Probabilities]) -> Verdict:
        """Raises UnreadableAnswer if `answer` has not the form that the mode asks for."""
        found = (_RESPONSE_ANSWER if response_mode else _PROMPT_ANSWER).fullmatch(answer.strip())
        wanted = (SAFETY, CATEGORIES, REFUSAL) if response_mode else (SAFETY, CATEGORIES)
        if not found or not all(field in decisions for field in wanted):
            raise UnreadableAnswer("The model's answer cannot be read as a verdict.")
        names = [name.strip() for name in found["categories"].split(",")]
        try:
            categories = tuple(Category(name) for name in names if name != "None")
        except ValueError:
            raise UnreadableAnswer("The model's answer names a category that does not exist.") from None
        return Verdict(
            RiskLevel(found["safety"]),
            categories,
            Refusal(found["refusal"]) if response_mode else None,
            {field: decisions[field] for field in wanted},
        )


_PROMPT_ANSWER = re.compile(r"Safety: (?P<safety>Safe|Unsafe|Controversial)\nCategories: (?P<categories>[^\n]+)")
_RESPONSE_ANSWER = re.compile(_PROMPT_ANSWER.pattern + r"\nRefusal: (?P<refusal>Yes|No)")
