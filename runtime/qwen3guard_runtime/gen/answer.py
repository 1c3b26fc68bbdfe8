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
from qwen3guard_contract.errors import TokenizerMismatch, UnreadableAnswer
from qwen3guard_contract.labels import (
    CATEGORY_ORDER,
    QUERY_CATEGORY_ORDER,
    REFUSAL_ORDER,
    RISK_ORDER,
    AnswerStatus,
    Category,
    Refusal,
    RiskLevel,
)

from qwen3guard_runtime.text.tokenizer import GuardTokenizer

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Field:
    """One line of the answer: its label and the possible values, in wire order."""

    label: str
    values: tuple[Enum | None, ...]

    def spell(self, value: Enum | None) -> str:
        return f"{self.label} {'None' if value is None else value.value}"


SAFETY = Field("Safety:", RISK_ORDER)
CATEGORIES_FIELD = Field("Categories:", CATEGORY_ORDER)
REFUSAL_FIELD = Field("Refusal:", REFUSAL_ORDER)


@dataclass(frozen=True)
class AnswerVerdict:
    """What an answer says; `probabilities` of each field that it decides, in wire order.

    Where `status` is not COMPLETE, `categories` are all that it names, or empty because they could not be read."""

    severity: RiskLevel
    categories: tuple[Category, ...]
    refusal: Refusal | None
    probabilities: Mapping[Field, Probabilities]
    status: AnswerStatus = AnswerStatus.COMPLETE

    def rows(self) -> Iterator[tuple[RiskLevel, Category, float]]:
        """What a policy decides by: for each category the level, the category and 1 - P(Safe).

        The categories are those that are named, or else the likeliest; all where they could not be read.
        """
        risk = 1 - float(self.probabilities[SAFETY][RISK_ORDER.index(RiskLevel.SAFE)])
        categories = self.categories
        if not categories and self.status is AnswerStatus.COMPLETE:
            categories = (QUERY_CATEGORY_ORDER[int(self.probabilities[CATEGORIES_FIELD][:-1].argmax())],)
        for category in categories or QUERY_CATEGORY_ORDER:
            yield self.severity, category, risk


class AnswerReader:
    """Reads answers with one checkpoint's tokenizer."""

    def __init__(self, tokenizer: GuardTokenizer) -> None:
        self._tokenizer = tokenizer
        self._candidates = {field: self._first_tokens(field) for field in (SAFETY, CATEGORIES_FIELD, REFUSAL_FIELD)}

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

    def read(
        self, answer: str, *, response_mode: bool, decisions: Mapping[Field, Probabilities], ended: bool = True
    ) -> AnswerVerdict:
        """What `answer` says; `ended` is whether it has ended by itself, which its last line needs to be whole.

        If anything but the level is malformed, the level stands and the status says so; but not Safe, which only a
        whole answer without categories means. Raises UnreadableAnswer then, and for no level, or more than one.
        """
        lines = (answer.strip() if ended else answer.lstrip()).split("\n")
        stated = {found["level"] for line in lines if (found := _LEVEL.match(line))}
        if len(stated) != 1 or not _LEVEL.match(lines[0]) or SAFETY not in decisions:
            raise UnreadableAnswer("The model's answer cannot be read as a verdict.")
        [level] = stated
        whole = lines if ended else lines[:-1]
        categories = refusal = None
        probabilities = {SAFETY: decisions[SAFETY]}
        if _is_decided(CATEGORIES_FIELD, lines[1:2], decisions):
            probabilities[CATEGORIES_FIELD] = decisions[CATEGORIES_FIELD]
            categories = _categories(whole[1:2])
        if response_mode and CATEGORIES_FIELD in probabilities and _is_decided(REFUSAL_FIELD, lines[2:3], decisions):
            probabilities[REFUSAL_FIELD] = decisions[REFUSAL_FIELD]
            refusal = next((each for each in Refusal if whole[2:3] == [REFUSAL_FIELD.spell(each)]), None)
        has_form = lines[0] == f"{SAFETY.label} {level}" and len(lines) == (3 if response_mode else 2)
        if not ended:
            status = AnswerStatus.CUT
        elif not has_form or categories is None or (response_mode and refusal is None):
            status = AnswerStatus.UNREADABLE
        else:
            status = AnswerStatus.COMPLETE
        if level == RiskLevel.SAFE.value and (status is not AnswerStatus.COMPLETE or categories):
            raise UnreadableAnswer("The model's answer begins with Safe and does not keep to it.")
        return AnswerVerdict(RiskLevel(level), categories or (), refusal, probabilities, status)


_LEVEL = re.compile(r"Safety: (?P<level>Safe|Unsafe|Controversial)(?!\w)")


def _is_decided(field: Field, line: Sequence[str], decisions: Mapping[Field, Probabilities]) -> bool:
    """Whether the field stands in the line that is its own, of which there is one or none."""
    return field in decisions and any(each.startswith(f"{field.label} ") for each in line)


def _categories(line: Sequence[str]) -> tuple[Category, ...] | None:
    """All that the line names; None where there is no line, or a name that does not exist: another may be meant."""
    for each in line:
        names = [name.strip() for name in each.removeprefix(CATEGORIES_FIELD.label).split(",")]
        try:
            return tuple(Category(name) for name in names if name != "None")
        except ValueError:
            return None
    return None
