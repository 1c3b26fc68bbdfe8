"""Reads a reply: makes the verdicts that a caller gets from its tensors. This module knows no connection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
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
from qwen3guard_contract.verdict import (
    AnswerToken,
    Classification,
    PromptVerdict,
    RawAnswer,
    StepResult,
    TokenVerdict,
)

T = TypeVar("T")
Reply = Callable[[wire.Tensor], npt.NDArray[Any]]
"""Returns a tensor of the reply without its batch dimension. Raises InternalError if the reply does not have it."""


def classification(reply: Reply, *, recent: bool = False) -> Classification:
    """Reads Gen's reply. `recent` says whether turns may have been left out. Raises InternalError."""
    refusal = _strings(reply(wire.REFUSAL))
    categories, refusals = reply(wire.CATEGORIES_PROBABILITIES), reply(wire.REFUSAL_PROBABILITIES)
    return Classification(
        severity=RiskLevel(_strings(reply(wire.SEVERITY))[0]),
        categories=tuple(Category(name) for name in _strings(reply(wire.CATEGORIES))),
        refusal=Refusal(refusal[0]) if refusal else None,
        severity_probabilities=_table(RISK_ORDER, reply(wire.SEVERITY_PROBABILITIES)),
        category_probabilities=_table(CATEGORY_ORDER, categories) if len(categories) else {},
        refusal_probabilities=_table(REFUSAL_ORDER, refusals) if len(refusals) else {},
        strict=bool(reply(wire.STRICT_UNSAFE)[0]),
        loose=bool(reply(wire.LOOSE_UNSAFE)[0]),
        unsafe=bool(reply(wire.UNSAFE)[0]),
        answer=_strings(reply(wire.ANSWER))[0],
        notice=_strings(reply(wire.NOTICE))[0],
        answer_status=AnswerStatus(_strings(reply(wire.ANSWER_STATUS))[0]),
        turns_left_out=int(reply(wire.TURNS_LEFT_OUT)[0]) if recent else 0,
    )


@dataclass(frozen=True)
class ConversationIds:
    """A conversation in Gen's template: int64 [tokens]. In `response_mode` its last turn is the assistant's."""

    ids: npt.NDArray[np.int64]
    response_mode: bool
    turns_left_out: int


def rendered(reply: Reply) -> ConversationIds:
    """Reads the reply of Gen's tokenizer."""
    return ConversationIds(
        reply(wire.INPUT_IDS), bool(reply(wire.RESPONSE_MODE)[0]), int(reply(wire.TURNS_LEFT_OUT)[0])
    )


def written(reply: Reply, *, conversation: ConversationIds) -> RawAnswer:
    """Reads Gen's reply about `conversation`, without a verdict. Raises InternalError."""
    logprobs = reply(wire.ANSWER_LOGPROBS).tolist()
    ended = _strings(reply(wire.ANSWER_STATUS))[0] != AnswerStatus.CUT.value
    choices: list[dict[str, float]] = [{} for _ in logprobs]
    for index, piece, logprob in zip(
        reply(wire.CHOICE_INDEX), _strings(reply(wire.CHOICE_PIECE)), reply(wire.CHOICE_LOGPROB), strict=True
    ):
        choices[index][piece] = float(logprob)
    tokens = map(AnswerToken, _strings(reply(wire.ANSWER_PIECES)), logprobs, choices)
    return RawAnswer(
        text=_strings(reply(wire.ANSWER))[0],
        tokens=tuple(tokens)[: len(logprobs) - ended],
        ended=ended,
        prompt_tokens=len(conversation.ids),
        completion_tokens=len(logprobs),
        turns_left_out=conversation.turns_left_out,
    )


def step_result(reply: Reply, *, opens: bool, recent: bool, ids: int | None) -> StepResult | None:
    """Reads Stream's reply. Returns None if the step is still pending, and must be sent again. Raises InternalError.

    `opens` says whether the step opened the stream, and `recent` whether turns may have been left out. `ids` is the
    number of token ids that were sent without any text, or None if the server has tokenized a text.
    """
    if reply(wire.PENDING)[0]:
        return None
    length = int(reply(wire.LENGTH)[0])
    risk_rows, category_rows = reply(wire.RISK_PROBABILITIES), reply(wire.CATEGORY_PROBABILITIES)
    strict, loose, flag = reply(wire.STRICT_FLAG), reply(wire.LOOSE_FLAG), reply(wire.FLAG)
    run, ends = reply(wire.RUN), reply(wire.TOKEN_ENDS) if ids is None else ()
    first = length - len(risk_rows)
    tokens = []
    for number, (risk, category) in enumerate(zip(risk_rows, category_rows, strict=True)):
        severity, likeliest = _labels(risk, category, RESPONSE_CATEGORY_ORDER)
        verdict = TokenVerdict(
            position=first + number,
            severity=severity,
            category=likeliest,
            severity_probabilities=_table(RISK_ORDER, risk),
            category_probabilities=_table(RESPONSE_CATEGORY_ORDER, category),
            strict=bool(strict[number]),
            loose=bool(loose[number]),
            flag=bool(flag[number]),
            run=int(run[number]),
            end=int(ends[number]) if len(ends) else None,
        )
        tokens.append(verdict)
    prompt = None
    if opens and len(rows := reply(wire.PROMPT_RISK_PROBABILITIES)):
        categories = reply(wire.PROMPT_CATEGORY_PROBABILITIES)[0]
        severity, likeliest = _labels(rows[0], categories, QUERY_CATEGORY_ORDER)
        prompt = PromptVerdict(
            severity=severity,
            category=likeliest,
            severity_probabilities=_table(RISK_ORDER, rows[0]),
            category_probabilities=_table(QUERY_CATEGORY_ORDER, categories),
            strict=bool(reply(wire.PROMPT_STRICT_FLAG)[0]),
            loose=bool(reply(wire.PROMPT_LOOSE_FLAG)[0]),
            flag=bool(reply(wire.PROMPT_FLAG)[0]),
            turns_left_out=int(reply(wire.TURNS_LEFT_OUT)[0]) if recent else 0,
        )
    return StepResult(
        tokens=tuple(tokens),
        length=length,
        final_tokens=int(reply(wire.FINAL_TOKENS)[0]) if ids is None else ids,
        final_characters=int(reply(wire.FINAL_CHARACTERS)[0]) if ids is None else 0,
        prompt_verdict=prompt,
        notice=_strings(reply(wire.NOTICE))[0] if opens else "",
    )


def _strings(array: npt.NDArray[Any]) -> list[str]:
    return [bytes(value).decode() for value in array.reshape(-1)]


def _labels(
    risk: npt.NDArray[Any], category: npt.NDArray[Any], order: Sequence[Category]
) -> tuple[RiskLevel, Category | None]:
    """Returns the likeliest level, and the likeliest category unless that level is Safe.

    The server would send both labels if they were requested.
    """
    level = RISK_ORDER[int(risk.argmax())]
    return level, None if level is RiskLevel.SAFE else order[int(category.argmax())]


def _table(labels: Sequence[T], values: npt.NDArray[Any]) -> dict[T, float]:
    """Raises InternalError if a probability is not finite. The largest value would still be found, and taken for a
    level."""
    numbers = values.tolist()
    if not all(map(math.isfinite, numbers)):
        raise InternalError("The server's probabilities are not finite; they are no verdict.")
    return dict(zip(labels, numbers, strict=True))
