"""stream_guard's steps in the tensors of `wire`: turns a request into a Step, and a StepReply into outputs."""

from __future__ import annotations

import json
from typing import Any

import numpy.typing as npt
from qwen3guard_contract import wire
from qwen3guard_contract.errors import InvalidRequest, from_text
from qwen3guard_contract.labels import Category
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.text import valid_text
from qwen3guard_contract.thresholds import Thresholds

from qwen3guard_runtime.request import Request
from qwen3guard_runtime.stream.steps import Step, StepReply
from qwen3guard_runtime.stream.verdicts import TokenJudgements

LONGEST_LIST = 1000
"""The most bytes of BLOCKED. A list of all categories has fewer."""


def step_of(request: Request, server_policy: Policy) -> Step:
    """Raises the step's STEP_ERROR, and InvalidRequest for a policy that cannot be read."""
    if request.has(wire.STEP_ERROR):
        _raise_first(request.tensors[wire.STEP_ERROR.name])
    return Step(
        request.sequence,
        request.tensors[wire.INPUT_IDS.name],
        request.number(wire.POSITION, 0),
        start=request.start,
        end=request.end or request.canary,
        query_index=request.number(wire.QUERY_INDEX, -1),
        response_start=request.number(wire.RESPONSE_START, 0),
        policy=policy_of(request, server_policy),
        scope=request.scope,
        canary=request.canary,
        replay=request.replay,
        is_abandoned=request.is_abandoned,
    )


def _raise_first(errors: npt.NDArray[Any]) -> None:
    """Raises the first of `errors`, as the tokenizer wrote them."""
    for each in errors:
        raise from_text(valid_text(each, "STEP_ERROR")) or InvalidRequest("STEP_ERROR is not the text of an error.")


def policy_of(request: Request, server_policy: Policy) -> Policy | None:
    """The policy in a request, or None if it has none. For what the request leaves out, `server_policy` applies.

    Raises InvalidRequest.
    """
    if not any(map(request.has, wire.POLICY)):
        return None
    blocked, thresholds = server_policy.blocked, server_policy.thresholds
    if request.has(wire.THRESHOLDS):
        thresholds = Thresholds.parse(request.text(wire.THRESHOLDS) or b"")
    elif request.has(wire.STRICT):  # a session that asks for a mode gets it, not the server's thresholds
        thresholds = None
    if request.has(wire.BLOCKED):
        blocked = _categories(request.text(wire.BLOCKED) or b"")
    return Policy(
        strict=bool(request.number(wire.STRICT, server_policy.strict)),
        debounce=request.number(wire.DEBOUNCE, server_policy.debounce),
        blocked=blocked,
        thresholds=thresholds,
    )


def _categories(data: bytes) -> frozenset[Category]:
    """Reads a JSON list of categories, each named once. Raises InvalidRequest."""
    try:
        names = json.loads(data.decode()) if len(data) <= LONGEST_LIST else None
        if not isinstance(names, list) or len(set(names)) < len(names):
            raise TypeError
        return frozenset(map(Category, names))
    except (ValueError, TypeError, RecursionError):
        known = ", ".join(category.value for category in Category)
        raise InvalidRequest(f"BLOCKED must be a JSON list of categories, each once; there are: {known}.") from None


def outputs_of(reply: StepReply, notice: str) -> dict[str, object]:
    """The outputs of stream_guard by tensor name."""
    return {
        wire.LENGTH.name: reply.length,
        wire.PENDING.name: reply.pending,
        wire.RISK.name: _risk(reply.response),
        wire.CATEGORY.name: _category(reply.response),
        wire.RISK_PROBABILITIES.name: reply.response.risk_probabilities,
        wire.CATEGORY_PROBABILITIES.name: reply.response.category_probabilities,
        wire.STRICT_FLAG.name: reply.flags.strict,
        wire.LOOSE_FLAG.name: reply.flags.loose,
        wire.FLAG.name: reply.flags.own,
        wire.RUN.name: reply.run,
        wire.PROMPT_RISK.name: _risk(reply.prompt),
        wire.PROMPT_CATEGORY.name: _category(reply.prompt),
        wire.PROMPT_RISK_PROBABILITIES.name: reply.prompt.risk_probabilities,
        wire.PROMPT_CATEGORY_PROBABILITIES.name: reply.prompt.category_probabilities,
        wire.PROMPT_STRICT_FLAG.name: reply.prompt_flags.strict,
        wire.PROMPT_LOOSE_FLAG.name: reply.prompt_flags.loose,
        wire.PROMPT_FLAG.name: reply.prompt_flags.own,
        wire.NOTICE.name: [notice],
    }


def _risk(judgements: TokenJudgements) -> list[str]:
    return [level.value for level in judgements.risk]


def _category(judgements: TokenJudgements) -> list[str]:
    return [category.value if category else "None" for category in judgements.category]
