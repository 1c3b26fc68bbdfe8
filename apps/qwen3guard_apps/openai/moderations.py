"""OpenAI's `/v1/moderations`, answered by Gen or by Stream: each input is judged as a user's prompt, and messages as a
conversation, whose last one may be an answer.

Categories have Qwen3Guard's own names, and those of OpenAI's that mean the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from qwen3guard_client import AsyncGuardClient, Category, Classification, Policy
from qwen3guard_contract import thresholds, wire
from qwen3guard_contract.errors import InputError
from qwen3guard_contract.labels import QUERY_CATEGORY_ORDER, RiskLevel
from qwen3guard_contract.message_text import text_of_message
from qwen3guard_contract.text import shown
from qwen3guard_contract.verdict import PromptVerdict, TokenVerdict

from qwen3guard_apps.openai.api_error import ApiError, invalid, of_guard
from qwen3guard_apps.openai.batches import Batches
from qwen3guard_apps.openai.conversation import read_conversation
from qwen3guard_apps.openai.readers import Apart, at_once

MAX_INPUTS = 1024
OPENAI_NAMES = {
    "violence": Category.VIOLENT,
    "illicit": Category.ILLEGAL,
    "sexual": Category.SEXUAL,
    "self-harm": Category.SUICIDE,
    "harassment": Category.UNETHICAL,
    "hate": Category.UNETHICAL,
}
"""OpenAI's categories, and the one of Qwen3Guard's in which each stands. The narrower ones, such as sexual/minors, are
in no answer: the guard does not tell them apart, and false would say that it does."""
_NAMES = {each.value: each for each in QUERY_CATEGORY_ORDER} | OPENAI_NAMES
_Turns = list[dict[str, str]]


class Moderations:
    """Answers requests by `policy`. Gen judges if `gen` is true, else Stream; `served` is that guard's ensemble."""

    def __init__(self, guard: AsyncGuardClient, policy: Policy, batches: Batches, *, gen: bool) -> None:
        self._guard = guard
        self._batches = batches
        self._policy = policy
        self._gen = gen
        self.model = "qwen3guard-gen" if gen else "qwen3guard-stream"
        self.served = (wire.CLASSIFY if gen else wire.STREAM_STEP).name

    async def answer(self, request: Mapping[str, Any], apart: Apart = at_once) -> dict[str, Any]:
        """The response to `request`, both as in OpenAI's API; `apart` reads it. Raises ApiError or a GuardError.

        If the guard refuses one of several inputs, its result is flagged, and has the reason in place of categories.
        """
        inputs = await apart(partial(_inputs, request))
        results = []
        for result in await self._batches.judge(self._judge, inputs):
            if isinstance(result, InputError | ApiError) and len(inputs) > 1:
                results.append(_refused(result if isinstance(result, ApiError) else of_guard(result)))
            elif isinstance(result, BaseException):
                raise result
            else:
                results.append(result)
        return {"id": f"modr-{uuid.uuid4().hex}", "model": self.model, "results": results}

    async def _judge(self, turns: _Turns | ApiError) -> dict[str, Any]:
        if isinstance(turns, ApiError):
            raise turns
        return await (self._by_gen(turns) if self._gen else self._by_stream(turns))

    async def _by_gen(self, turns: _Turns) -> dict[str, Any]:
        verdict = await self._guard.classify(messages=turns)
        return self._result(verdict, verdict.categories)

    async def _by_stream(self, turns: _Turns) -> dict[str, Any]:
        *before, last = turns
        is_answer = last["role"] == "assistant"
        async with self._guard.stream(messages=before if is_answer else turns, policy=self._policy) as stream:
            verdict: PromptVerdict | TokenVerdict = stream.prompt_verdict
            flag = None
            if is_answer:
                await stream.step(last["content"])
                await stream.finish()
                flag = stream.flagged(strict=None)
                verdict = flag or max(stream.verdicts, key=_risk_of, default=verdict)
        categories = (verdict.category,) if verdict.category else ()
        return self._result(verdict, categories, debounced=is_answer and flag is None)

    def _result(
        self,
        verdict: Classification | PromptVerdict | TokenVerdict,
        categories: tuple[Category, ...],
        *,
        debounced: bool = False,
    ) -> dict[str, Any]:
        """`debounced` says that the verdict, of one token, has not flagged its answer."""
        levels = verdict.severity_probabilities
        unsafe = set() if debounced else self._policy.unsafe_categories(verdict)
        scores = _scores(self._risk(levels), verdict.category_probabilities)
        refusal = verdict.refusal if isinstance(verdict, Classification) else None
        return {
            "flagged": bool(unsafe),
            "categories": {name: each in unsafe for name, each in _NAMES.items()},
            "category_scores": {name: round(scores[each], 6) for name, each in _NAMES.items()},
            "category_applied_input_types": {name: ["text"] for name in _NAMES},
            "guard": {
                **({"refusal": refusal.value} if refusal else {}),
                "severity": verdict.severity.value,
                "categories": [each.value for each in categories],
                "probabilities": {level.value: round(value, 6) for level, value in levels.items()},
                "strict": self._unsafe(verdict, strict=True),
                "loose": self._unsafe(verdict, strict=False),
            },
        }

    def _risk(self, levels: Mapping[RiskLevel, float]) -> float:
        """1 - P(Safe) in strict mode and where thresholds decide, which bound it; P(Unsafe) in loose mode."""
        if self._policy.strict or self._policy.thresholds is not None:
            return 1 - levels[RiskLevel.SAFE]
        return levels[RiskLevel.UNSAFE]

    def _unsafe(self, verdict: Classification | PromptVerdict | TokenVerdict, *, strict: bool) -> bool:
        """Whether the level counts as unsafe, in any of the verdict's categories.

        An answer that broke off before it named a category may have any.
        """
        named = thresholds.categories(verdict)
        return any(self._policy.is_unsafe_level(verdict.severity, each, strict=strict) for each in named)


def _scores(risk: float, probabilities: Mapping[Any, float]) -> dict[Category, float]:
    """`risk` divided among the categories in proportion to their probabilities, without that of the answer `None`.

    Every category gets all of `risk` where none has a probability.
    """
    likely = {each: probabilities.get(each, 0.0) for each in QUERY_CATEGORY_ORDER}
    total = sum(likely.values())
    return {each: risk * value / total if total > 0 else risk for each, value in likely.items()}


def _risk_of(verdict: TokenVerdict) -> float:
    return 1 - verdict.severity_probabilities[RiskLevel.SAFE]


def _refused(told: ApiError) -> dict[str, Any]:
    """The result of an input that the guard refuses. It is flagged, so that nobody takes it for a safe one."""
    without = dict.fromkeys(("categories", "category_scores", "category_applied_input_types"))
    return {"flagged": True, **without, "error": {"code": told.code, "message": str(told)}}


def _inputs(request: Mapping[str, Any]) -> list[_Turns | ApiError]:
    """The conversations to judge: a text, each of a list of texts, or one input in parts, as a user's turn; or the
    messages of one, or those of each of several. One of several that cannot be read is its error.

    Raises ApiError for images, for token ids, and for a field that is not read.
    """
    for name, value in request.items():
        if name not in ("input", "messages", "model", "user") and value is not None:
            raise invalid(f"The request has a field {shown(name)}, which is not read.")
        if name in ("model", "user") and not isinstance(value, str | None):
            raise invalid(f"The field {name} must be a text.")
    value, messages = request.get("input"), request.get("messages")
    if messages is not None:
        if value is not None:
            raise invalid("Send either an input or messages, not both.")
        if not isinstance(messages, list) or not messages:
            raise invalid("The messages must be a list.")
        if not all(isinstance(each, list) for each in messages):
            return [_conversation(messages)]
        _check_number(messages)
        return [_read(each) for each in messages]
    if isinstance(value, str):
        return [_of_user(value)]
    if not isinstance(value, list) or not value:
        raise invalid("The input must be a text, or a list of texts.")
    _check_number(value)
    if all(isinstance(each, str) for each in value):
        return [_of_user(each) for each in value]
    return [_of_user(text_of_message({"role": "user", "content": value}, "The input"))]


def _read(messages: list[Any]) -> _Turns | ApiError:
    try:
        return _conversation(messages)
    except ApiError as error:
        return error


def _conversation(messages: list[Any]) -> _Turns:
    read = read_conversation({"messages": messages})
    return [*read.messages, *([{"role": "assistant", "content": read.begun}] if read.begun else [])]


def _of_user(text: str) -> _Turns:
    return [{"role": "user", "content": text}]


def _check_number(inputs: list[Any]) -> None:
    if len(inputs) > MAX_INPUTS:
        raise invalid(f"There are {len(inputs)} inputs; a request takes {MAX_INPUTS}.")
