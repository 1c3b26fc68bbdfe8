"""Gen's answer: the fields in it, the token that decides each, and how the finished text is read.

The answer has the lines `Safety: X`, `Categories: Y[, Z]` and, for a response, `Refusal: Yes|No`. The token after a
field's label decides the field, because the first tokens of its possible values all differ.
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

from qwen3guard_runtime.engine.logits import softmax
from qwen3guard_runtime.text.tokenizer import GuardTokenizer

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Field:
    """One line of the answer: its label and its possible values, in the index order of the wire."""

    label: str
    values: tuple[Enum | None, ...]

    def spell(self, value: Enum | None) -> str:
        """The line with this value."""
        return f"{self.label} {'None' if value is None else value.value}"


SAFETY = Field("Safety:", RISK_ORDER)
CATEGORIES_FIELD = Field("Categories:", CATEGORY_ORDER)
REFUSAL_FIELD = Field("Refusal:", REFUSAL_ORDER)


@dataclass(frozen=True)
class AnswerVerdict:
    """What an answer says, with the `probabilities` of each field that it decides, in the index order of the wire.

    If `status` is not COMPLETE, `categories` are those that it names, or empty because they could not be read.
    """

    severity: RiskLevel
    categories: tuple[Category, ...]
    refusal: Refusal | None
    probabilities: Mapping[Field, Probabilities]
    status: AnswerStatus = AnswerStatus.COMPLETE

    def rows(self) -> Iterator[tuple[RiskLevel, Category, float]]:
        """The arguments of `Policy.is_unsafe` for each category of the answer: the level, the category and 1 - P(Safe).

        These are the categories that the answer names, or the likeliest if it names none, or all of them if they could
        not be read.
        """
        risk = 1 - float(self.probabilities[SAFETY][RISK_ORDER.index(RiskLevel.SAFE)])
        categories = self.categories
        if not categories and self.status is AnswerStatus.COMPLETE:
            categories = (QUERY_CATEGORY_ORDER[int(self.probabilities[CATEGORIES_FIELD][:-1].argmax())],)
        for category in categories or QUERY_CATEGORY_ORDER:
            yield self.severity, category, risk


class AnswerReader:
    """Reads answers with the tokenizer of one checkpoint. Raises TokenizerMismatch if fields are not decided by one
    token."""

    def __init__(self, tokenizer: GuardTokenizer) -> None:
        self._tokenizer = tokenizer
        self._candidates = {field: self._first_tokens(field) for field in (SAFETY, CATEGORIES_FIELD, REFUSAL_FIELD)}

    def _first_tokens(self, field: Field) -> list[int]:
        """The first token of each of the field's values. Raises TokenizerMismatch."""
        label = self._tokenizer.encode(field.label)
        lines = [self._tokenizer.encode(field.spell(value)) for value in field.values]
        if any(ids[: len(label)] != label or len(ids) == len(label) for ids in lines):
            raise TokenizerMismatch(f"The tokenizer merges {field.label!r} with what follows it.")
        first_tokens = [ids[len(label)] for ids in lines]
        if len(set(first_tokens)) != len(first_tokens):
            raise TokenizerMismatch(f"The tokenizer starts two values of {field.label!r} with the same token.")
        return first_tokens

    def field_decided_after(self, text: str) -> Field | None:
        """The field whose value comes next after `text`, the beginning of an answer. None if no value comes next."""
        line = text.rpartition("\n")[2]
        return next((field for field in self._candidates if field.label == line), None)

    def first_tokens(self, field: Field) -> Sequence[int]:
        """The first token of each of the field's values, all different."""
        return self._candidates[field]

    @property
    def candidates(self) -> list[int]:
        """The first tokens of all fields' values."""
        return sorted({token for tokens in self._candidates.values() for token in tokens})

    def probabilities(self, field: Field, logits: npt.NDArray[np.float32]) -> Probabilities:
        """The softmax of `logits` [vocab] over the first tokens of the field's values. Returns float32 [values]."""
        return softmax(logits[self._candidates[field]])

    def text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each token adds to that of the tokens before it."""
        return self._tokenizer.pieces(ids)

    def read(
        self, answer: str, *, response_mode: bool, decisions: Mapping[Field, Probabilities], ended: bool = True
    ) -> AnswerVerdict:
        """Reads the text `answer`. `ended` says that it has its end token; without it, the last line is incomplete.

        If something other than the level is malformed, the level counts, and the status says that the answer is
        malformed. But the level Safe counts only in a complete answer without categories. Raises UnreadableAnswer for
        another answer with Safe, and for an answer with no level or with several.
        """
        lines = (answer.strip() if ended else answer.lstrip()).split("\n")
        levels = {match["level"] for line in lines if (match := _LEVEL.match(line))}
        if len(levels) != 1 or not _LEVEL.match(lines[0]) or SAFETY not in decisions:
            raise UnreadableAnswer("The model's answer cannot be read as a verdict.")
        [level] = levels
        whole_lines = lines if ended else lines[:-1]
        categories = refusal = None
        probabilities = {SAFETY: decisions[SAFETY]}
        if _is_decided(CATEGORIES_FIELD, lines[1:2], decisions):
            probabilities[CATEGORIES_FIELD] = decisions[CATEGORIES_FIELD]
            categories = _categories(whole_lines[1:2])
        if response_mode and CATEGORIES_FIELD in probabilities and _is_decided(REFUSAL_FIELD, lines[2:3], decisions):
            probabilities[REFUSAL_FIELD] = decisions[REFUSAL_FIELD]
            refusal = next((each for each in Refusal if whole_lines[2:3] == [REFUSAL_FIELD.spell(each)]), None)
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
    """Whether the field was decided, in its own line. `line` has that line, or nothing if the answer is shorter."""
    return field in decisions and any(text.startswith(f"{field.label} ") for text in line)


def _categories(line: Sequence[str]) -> tuple[Category, ...] | None:
    """The categories that a line names. `line` has that line, or nothing if the answer is shorter.

    None if there is no line, or if it has a name that does not exist, since another category may be meant.
    """
    for text in line:
        names = [name.strip() for name in text.removeprefix(CATEGORIES_FIELD.label).split(",")]
        try:
            return tuple(Category(name) for name in names if name != "None")
        except ValueError:
            return None
    return None
