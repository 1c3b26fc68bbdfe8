"""LiteLLM's generic guardrail API, answered by Gen or by Stream: `guardrail: generic_guardrail_api` in its config.

LiteLLM's proxy sends the texts of a request before the LLM gets it, and those of an answer before the client does, on
every route that it can read. What is unsafe by the policy is blocked, and so is what the guard cannot read. An answer
is judged in its conversation, which is remembered from the request by LiteLLM's id of the call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from qwen3guard_client import AsyncGuardClient, Classification, Policy
from qwen3guard_contract.errors import InputError
from qwen3guard_contract.labels import RiskLevel
from qwen3guard_contract.message_text import text_of_message
from qwen3guard_contract.text import shown
from qwen3guard_contract.thresholds import Judgement, categories

from qwen3guard_apps.openai import conversation
from qwen3guard_apps.openai.api_error import ApiError, invalid
from qwen3guard_apps.openai.batches import Batches
from qwen3guard_apps.openai.calls_in_progress import CallsInProgress
from qwen3guard_apps.openai.conversation import Conversation
from qwen3guard_apps.openai.readers import Apart, at_once

PATH = "/beta/litellm_basic_guardrail_api"
_PASSED_OVER = frozenset(
    {
        "additional_provider_specific_params",
        "litellm_trace_id",
        "litellm_version",
        "model",
        "request_data",
        "request_headers",
        "tools",
    }
)
"""Fields of a request that are not judged: no text of the conversation, or definitions of tools."""
_READ = frozenset({"images", "input_type", "litellm_call_id", "structured_messages", "texts", "tool_calls"})
MAX_TEXTS = 256
"""The most different texts of one request that are judged, beside its conversation."""
_Turns = list[dict[str, str]]


class LiteLLMGuardrail:
    """Answers requests by `policy`, with the guards that are served: at least one of `gen` and `stream` is true.

    Where both are, Gen judges prompts, and Stream answers: LiteLLM sends a streamed answer again and again as it
    grows, and only Stream flags the beginning of harm.
    """

    def __init__(self, guard: AsyncGuardClient, policy: Policy, batches: Batches, *, gen: bool, stream: bool) -> None:
        self._guard = guard
        self._batches = batches
        self._policy = policy
        self._gen = gen
        self._stream = stream
        self._calls = CallsInProgress()

    async def answer(self, request: Mapping[str, Any], apart: Apart = at_once) -> dict[str, Any]:
        """The response to `request`, which is read by `apart`: the action NONE, or BLOCKED with a reason.

        Raises ApiError for what is no request of LiteLLM's, and a GuardError where the guard cannot judge: LiteLLM
        takes the statuses of both as a failure.
        """
        call = request.get("litellm_call_id")
        try:
            asked, to_judge = await apart(partial(self._to_judge, request))
            if asked:
                self._calls.begin(call, asked)
            reasons = await self._reasons(to_judge)
        except InputError as error:
            reasons = [f"The guard refuses the text: {error}"]
        except _CannotRead as error:
            reasons = [str(error)]
        if reasons:
            if request.get("input_type") == "request":
                self._calls.forget(call)
            return {"action": "BLOCKED", "blocked_reason": " ".join(dict.fromkeys(reasons))}
        return {"action": "NONE"}

    def _to_judge(self, request: Mapping[str, Any]) -> tuple[Conversation | None, list[_Judged]]:
        """The conversation of a request that begins one, and what is to be judged. There is nothing without text."""
        kind = request.get("input_type")
        if kind not in ("request", "response"):
            raise invalid("The input_type must be request or response.")
        for name, value in request.items():
            if value is not None and name not in _READ | _PASSED_OVER:
                raise _CannotRead(f"The {kind} has a field {shown(name)}, which is not read.")
        if _list(request, "images"):
            raise _CannotRead(f"The {kind} has an image; the guard reads text alone.")
        texts = list(dict.fromkeys([*_texts(request), *_calls(request)]))
        call = request.get("litellm_call_id")
        if not (call is None or isinstance(call, str)):
            raise invalid("The litellm_call_id must be a text.")
        if kind == "response":
            if _list(request, "structured_messages"):
                raise _CannotRead("The response has structured_messages, which are read of a request alone.")
            _check_number(texts)
            asked = self._calls.conversation(call)
            if asked is None:
                return None, [_Judged("response", [_turn("user", text)]) for text in texts]
            answers = [[*asked.messages, _turn("assistant", asked.begun + text)] for text in texts]
            return None, [_Judged("response", turns) for turns in answers]
        messages = _list(request, "structured_messages")
        asked = _conversation(messages)
        whole = {text_of_message(each, "A message") for each in messages} if asked else ()
        read = "\n".join([*(turn["content"] for turn in asked.messages), asked.begun]) if asked else ""
        texts = [text for text in texts if text not in whole]
        _check_number(texts)
        others = [_Judged("text", [_turn("user", text)]) for text in texts if text not in read]
        if asked is None:
            return None, others
        prompt = [_Judged("prompt", asked.messages)]
        begun = [_Judged("response", [*asked.messages, _turn("assistant", asked.begun)])] if asked.begun else []
        return asked, prompt + begun + others

    async def _reasons(self, to_judge: Sequence[_Judged]) -> list[str]:
        async def judge(judged: _Judged) -> Judgement | None:
            is_answer = judged.turns[-1]["role"] == "assistant"
            by_stream = self._stream and (is_answer or not self._gen)
            return await (self._by_stream(judged.turns) if by_stream else self._by_gen(judged.turns))

        reasons = []
        for judged, verdict in zip(to_judge, await self._batches.judge(judge, to_judge), strict=True):
            if isinstance(verdict, BaseException):
                raise verdict
            if verdict:
                reasons.append(_reason(judged.what, verdict))
        return reasons

    async def _by_gen(self, turns: _Turns) -> Classification | None:
        verdict = await self._guard.classify(messages=turns)
        return verdict if self._policy.unsafe_categories(verdict) else None

    async def _by_stream(self, turns: _Turns) -> Judgement | None:
        *before, last = turns
        is_response = last["role"] == "assistant"
        async with self._guard.stream(messages=before if is_response else turns, policy=self._policy) as stream:
            if not is_response:
                return stream.prompt_verdict if self._policy.unsafe_categories(stream.prompt_verdict) else None
            await stream.step(last["content"])
            await stream.finish()
            return stream.flagged(strict=None)


class _Judged(NamedTuple):
    """A text to judge: the last of `turns`. `what` names it in the reason."""

    what: str
    turns: _Turns


def _check_number(texts: Sequence[str]) -> None:
    """Raises _CannotRead for more texts than one request may have judged."""
    if len(texts) > MAX_TEXTS:
        raise _CannotRead(f"There are {len(texts)} different texts; the guard judges at most {MAX_TEXTS} at once.")


class _CannotRead(Exception):
    """A request with something that the guard cannot read. Its sentence names it."""


def _texts(request: Mapping[str, Any]) -> list[str]:
    texts = _list(request, "texts")
    if not all(isinstance(each, str) for each in texts):
        raise invalid("The texts must be a list of texts.")
    return [each for each in texts if each.strip()]


def _calls(request: Mapping[str, Any]) -> list[str]:
    """The arguments of each tool call that has some."""
    calls = _list(request, "tool_calls")
    texts = [text_of_message({"tool_calls": [each]}, f"Tool call {number}") for number, each in enumerate(calls, 1)]
    return [each for each in texts if each.strip()]


def _list(request: Mapping[str, Any], name: str) -> list[Any]:
    """The field `name`, empty where it is absent or null. Raises ApiError for what is no list."""
    value = request.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(f"The {name} must be a list.")
    return value


def _conversation(messages: Sequence[Any]) -> Conversation | None:
    """The messages of a request. None where they have no text, and where LiteLLM sends texts alone, as those of
    embeddings."""
    numbered = enumerate(messages, 1)
    if all(isinstance(each, dict) and not text_of_message(each, f"Message {at}").strip() for at, each in numbered):
        return None
    try:
        return conversation.read_conversation({"messages": list(messages)})
    except ApiError as error:
        raise _CannotRead(str(error)) from None


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _reason(what: str, verdict: Judgement) -> str:
    severity = verdict.severity.value
    if verdict.severity is RiskLevel.SAFE:  # its risk is above a threshold nevertheless
        severity = f"{1 - verdict.severity_probabilities[RiskLevel.SAFE]:.0%} risky"
    named = ", ".join(each.value for each in categories(verdict))
    return f"The {what} is {severity}, {named}."
