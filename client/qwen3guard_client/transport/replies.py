"""How a reply is read: from tensors to the verdicts that a caller gets. Knows no connection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy.typing as npt
from qwen3guard_contract import wire
from qwen3guard_contract.errors import InternalError
from qwen3guard_contract.labels import (
    CATEGORY_ORDER,
    QUERY_CATEGORY_ORDER,
    REFUSAL_ORDER,
    RESPONSE_CATEGORY_ORDER,
    RISK_ORDER,
    AnswerStatus,
    Category,
    Refusal,
    RiskLevel,
)
from qwen3guard_contract.verdict import Classification, PromptVerdict, StepResult, TokenVerdict

T = TypeVar("T")
Reply = Callable[[wire.Tensor], npt.NDArray[Any]]
"""A reply's tensor without its batch dimension."""


def classification(reply: Reply) -> Classification:
    refusal = _words(reply(wire.REFUSAL))
    categories, refusals = reply(wire.CATEGORIES_PROBABILITIES), reply(wire.REFUSAL_PROBABILITIES)
    return Classification(
        RiskLevel(_words(reply(wire.SEVERITY))[0]),
        tuple(Category(name) for name in _words(reply(wire.CATEGORIES))),
        Refusal(refusal[0]) if refusal else None,
        _table(RISK_ORDER, reply(wire.SEVERITY_PROBABILITIES)),
        _table(CATEGORY_ORDER, categories) if len(categories) else {},
        _table(REFUSAL_ORDER, refusals) if len(refusals) else {},
        bool(reply(wire.STRICT_UNSAFE)[0]),
        bool(reply(wire.LOOSE_UNSAFE)[0]),
        bool(reply(wire.UNSAFE)[0]),
        _words(reply(wire.ANSWER))[0],
        _words(reply(wire.NOTICE))[0],
        AnswerStatus(_words(reply(wire.ANSWER_STATUS))[0]),
    )


def step_result(reply: Reply, *, opens: bool, ids: int | None) -> StepResult | None:
    """`ids`: as many token ids were sent, which no text stands for; None where the server has tokenized."""
    if reply(wire.PENDING)[0]:
        return None
    length = int(reply(wire.LENGTH)[0])
    risk_rows, category_rows = reply(wire.RISK_PROBABILITIES), reply(wire.CATEGORY_PROBABILITIES)
    strict, loose, flag = reply(wire.STRICT_FLAG), reply(wire.LOOSE_FLAG), reply(wire.FLAG)
    run, ends = reply(wire.RUN), reply(wire.TOKEN_ENDS) if ids is None else ()
    first = length - len(risk_rows)
    tokens = tuple(
        TokenVerdict(
            first + number,
            *_labels(risk_rows[number], category_rows[number], RESPONSE_CATEGORY_ORDER),
            _table(RISK_ORDER, risk_rows[number]),
            _table(RESPONSE_CATEGORY_ORDER, category_rows[number]),
            bool(strict[number]),
            bool(loose[number]),
            bool(flag[number]),
            int(run[number]),
            int(ends[number]) if len(ends) else None,
        )
        for number in range(len(risk_rows))
    )
    prompt = None
    if opens and len(rows := reply(wire.PROMPT_RISK_PROBABILITIES)):
        categories = reply(wire.PROMPT_CATEGORY_PROBABILITIES)[0]
        prompt = PromptVerdict(
            *_labels(rows[0], categories, QUERY_CATEGORY_ORDER),
            _table(RISK_ORDER, rows[0]),
            _table(QUERY_CATEGORY_ORDER, categories),
            bool(reply(wire.PROMPT_STRICT_FLAG)[0]),
            bool(reply(wire.PROMPT_LOOSE_FLAG)[0]),
            bool(reply(wire.PROMPT_FLAG)[0]),
        )
    return StepResult(
        tokens,
        length,
        int(reply(wire.FINAL_TOKENS)[0]) if ids is None else ids,
        int(reply(wire.FINAL_CHARACTERS)[0]) if ids is None else 0,
        prompt,
        _words(reply(wire.NOTICE))[0] if opens else "",
    )


def _words(array: npt.NDArray[Any]) -> list[str]:
    return [bytes(value).decode() for value in array.reshape(-1)]


def _labels(
    risk: npt.NDArray[Any], category: npt.NDArray[Any], order: Sequence[Category]
) -> tuple[RiskLevel, Category | None]:
    """What the server sends as words to those who ask: the likeliest, and no category of what is safe."""
    level = RISK_ORDER[int(risk.argmax())]
    return level, None if level is RiskLevel.SAFE else order[int(category.argmax())]


def _table(labels: Sequence[T], values: npt.NDArray[Any]) -> dict[T, float]:
    """Raises InternalError for what is no number: the largest of them would still be found, and called a level."""
    numbers = values.tolist()
    if not all(map(math.isfinite, numbers)):
        raise InternalError("The server's probabilities are not finite; they are no verdict.")
    return dict(zip(labels, numbers, strict=True))
