"""The answers of one guard to labelled rows as arrays: labels, decisions in both modes, and scores. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.labels import RISK_ORDER, AnswerStatus, Category, RiskLevel
from qwen3guard_contract.policy import DEFAULT_DEBOUNCE, Policy, runs

from qwen3guard_apps.annotation.rows import Fields, is_missing
from qwen3guard_apps.evaluation.hits import Span
from qwen3guard_apps.evaluation.labels import LabelFields, span
from qwen3guard_apps.evaluation.upstream_rule import upstream_evaluation_rule

SAFE, UNSAFE = RISK_ORDER.index(RiskLevel.SAFE), RISK_ORDER.index(RiskLevel.UNSAFE)
MODES = ("strict", "loose")
SCORES = {"1 - P(Safe)": "risk", "P(Unsafe)": "unsafe"}
"""The field of a JudgedRow for each score."""


@dataclass(frozen=True)
class JudgedRow:
    """A guard's answer to one row.

    `decisions` say whether it is unsafe, strict and loose; `upstream` says the same by upstream's rule, for streams
    alone. `categories` are those of the strict decision, and `loose_categories` those of the loose one where they may
    differ, as a stream's do, whose two flags may be at two tokens. `risk` is 1 - P(Safe), and `unsafe` is P(Unsafe).
    For a streamed response they are the highest threshold at which it is flagged: of each DEFAULT_DEBOUNCE tokens in a
    row the least score, and the largest of these. `distances` are the tokens from the labelled sentence to the flag, by
    each rule, None where there is no flag.
    """

    decisions: dict[str, bool]
    categories: tuple[str, ...]
    risk: float
    unsafe: float
    upstream: dict[str, bool] | None = None
    distances: dict[str, int | None] | None = None
    loose_categories: tuple[str, ...] | None = None

    def named(self, mode: str) -> tuple[str, ...]:
        """The categories of the decision in `mode`."""
        return self.categories if mode == "strict" or self.loose_categories is None else self.loose_categories


def gen_answer(answer: dict[str, Any]) -> JudgedRow:
    """Reads what `judge.ask_gen` has kept.

    The categories are those that Gen names, or else the likeliest; there is none where the answer broke off before it
    named one.
    """
    levels = answer["probabilities"]["severity"]
    likely = {name: value for name, value in answer["probabilities"]["categories"].items() if name != "None"}
    categories = tuple(answer["categories"])
    if not categories and answer.get("answer_status", AnswerStatus.COMPLETE.value) == AnswerStatus.COMPLETE.value:
        categories = (max(likely, key=lambda name: likely[name]),)
    decisions = {mode: bool(answer[mode]) for mode in MODES}
    return JudgedRow(decisions, categories, 1 - levels[RiskLevel.SAFE.value], levels[RiskLevel.UNSAFE.value])


def stream_answer(answer: dict[str, Any], record: dict[str, Any]) -> JudgedRow:
    """Reads what `judge.ask_stream` has kept for the row `record`."""
    tokens = answer["tokens"]
    if tokens is None:
        level, severity = RiskLevel(answer["prompt"]["level"]), answer["prompt"]["severity"]
        decisions = {mode: level.is_unsafe(strict=mode == "strict") for mode in MODES}
        return JudgedRow(decisions, _named(answer["prompt"]["category"]), 1 - severity[SAFE], severity[UNSAFE])
    levels = [RiskLevel(name) for name in tokens["levels"]]
    categories = [name and Category(name) for name in tokens["categories"]]
    flagged = {mode: first_flag(levels, categories, strict=mode == "strict") for mode in MODES}
    rule, rule_at = upstream_evaluation_rule(levels)
    sentence = span(record, tokens["first"], tokens["ends"])
    indices = {**flagged, "upstream": rule_at if rule is not RiskLevel.SAFE else None}
    rows = np.array(tokens["severity"], np.float64).reshape(-1, len(RISK_ORDER))
    named = {mode: () if at is None else _named(tokens["categories"][at]) for mode, at in flagged.items()}
    return JudgedRow(
        {mode: index is not None for mode, index in flagged.items()},
        named["strict"],
        debounced(1 - rows[:, SAFE]),
        debounced(rows[:, UNSAFE]),
        {mode: rule.is_unsafe(strict=mode == "strict") for mode in MODES},
        None if sentence is None else _distances(indices, tokens["first"], sentence),
        named["loose"],
    )


def _named(category: str | None) -> tuple[str, ...]:
    return () if category is None else (category,)


def first_flag(levels: Sequence[RiskLevel], categories: Sequence[Category | None], *, strict: bool) -> int | None:
    """The index of the first token that the causal rule flags (section 4.4 of the report), or None."""
    is_unsafe = Policy(strict).is_unsafe_level
    lengths = runs(is_unsafe(level, category) for level, category in zip(levels, categories, strict=True))
    return next((index for index, run in enumerate(lengths) if run >= DEFAULT_DEBOUNCE), None)


def debounced(scores: npt.NDArray[np.float64]) -> float:
    """The largest t such that DEFAULT_DEBOUNCE `scores` [tokens] in a row are at least t; 0 for fewer tokens."""
    if len(scores) < DEFAULT_DEBOUNCE:
        return 0.0
    return float(np.lib.stride_tricks.sliding_window_view(scores, DEFAULT_DEBOUNCE).min(axis=1).max())


def _group(name: str, value: Any) -> str:
    """A row without a value is not one whose value is the text None."""
    return f"(no {name})" if is_missing(value) else str(value)


def _text(number: int, record: dict[str, Any], conversation: Fields) -> str:
    try:
        return json.dumps(conversation.conversation(record), default=str)
    except InvalidRequest:
        return f"row {number}"


def _distances(indices: dict[str, int | None], first: int, sentence: Span) -> dict[str, int | None]:
    return {name: None if at is None else sentence.distance(first + at) for name, at in indices.items()}


@dataclass(frozen=True)
class JudgedRows:
    """The labels of rows and a guard's answers to them, in the same order.

    `unsafe` is [rows]; `labelled` has each row's categories, and `groups` each row's value of a grouping field.
    `texts` tell rows of the same conversation: they are the same there.
    """

    unsafe: npt.NDArray[np.bool_]
    labelled: tuple[tuple[str, ...], ...]
    groups: dict[str, tuple[str, ...]]
    answers: tuple[JudgedRow, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(
        cls,
        rows: Iterable[tuple[dict[str, Any], JudgedRow]],
        fields: LabelFields,
        conversation: Fields = Fields(),  # noqa: B008 (it is frozen)
    ) -> JudgedRows:
        """Collects rows whose labels can be read, each a record with its answer."""
        pairs = list(rows)
        records = [record for record, _ in pairs]
        return cls(
            np.array([fields.unsafe(record) for record in records], np.bool_),
            tuple(fields.categories(record) for record in records),
            {
                name: tuple(_group(name, record.get(name)) for record in records)
                for name in fields.groups
                if not all(is_missing(record.get(name)) for record in records)
            },
            tuple(answer for _, answer in pairs),
            tuple(_text(number, record, conversation) for number, record in enumerate(records)),
        )

    @property
    def both_classes(self) -> bool:
        return bool(0 < self.unsafe.sum() < len(self.unsafe))

    def decisions(self, mode: str) -> npt.NDArray[np.bool_]:
        return np.array([answer.decisions[mode] for answer in self.answers], np.bool_)

    def scores(self, name: str) -> npt.NDArray[np.float64]:
        return np.array([getattr(answer, name) for answer in self.answers], np.float64)
