"""Gen as a chat model: OpenAI's chat completions, answered with Gen's own text, as vLLM and SGLang serve it.

The text is what greedy decoding gives, whatever the request says of sampling.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3guard_client import AnswerToken, AsyncGuardClient, RawAnswer
from qwen3guard_client.arguments import Context
from qwen3guard_contract.text import shown

from qwen3guard_apps.openai.api_error import ApiError, invalid

NAME = "qwen3guard-gen"
"""The name under which it is listed."""
_NAMES = re.compile(r"([\w.-]+/)*qwen3guard-gen(-[\w.-]+)?", re.ASCII | re.IGNORECASE)
MOST_ALTERNATIVES = 20
"""The most `top_logprobs`, as in OpenAI's API."""
LEAST_LOGPROB = -9999.0
"""What stands for less, as in OpenAI's API: JSON has no infinity."""
_READ = {"model", "messages", "stream", "stream_options", "logprobs", "top_logprobs", "n"}
_LIMITS = ("max_completion_tokens", "max_tokens")
_OF_NO_USE = {
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "best_of", "use_beam_search"),
    *("user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "store", "reasoning_effort"),
    *("chat_template_kwargs", "skip_special_tokens", "spaces_between_special_tokens"),
    *("parallel_tool_calls", "extra_body", "priority", "request_id", "cache_salt"),
}
"""Fields that change nothing about a greedy answer, or speak to the operator of a model."""
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    **dict.fromkeys(("stop", "logit_bias", "tools", "functions", "stop_token_ids"), ([], {})),
}
"""Fields that would change the answer, and their values that do not."""


def is_guard(name: Any) -> bool:
    """Whether a request's `model` is Gen: in any size, and with or without the name of its organization."""
    return isinstance(name, str) and _NAMES.fullmatch(name) is not None


def listed(name: str = NAME) -> dict[str, Any]:
    """Its entry in the list of models."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "qwen3guard"}


def unknown() -> ApiError:
    """The error for another model, where no LLM has any."""
    return ApiError(404, "invalid_request_error", "model_not_found", f"The only model here is {NAME}.")


class GuardModel:
    """Answers requests for chat completions whose `model` is Gen. `context` is that of the client's `classify`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def answer(
        self, request: Mapping[str, Any], guard: AsyncGuardClient
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """The completion, or its chunks if the request asks for a stream. Raises ApiError or a GuardError."""
        limit = _checked(request)
        answer = await guard.raw_answer(messages=request["messages"], context=self._context)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request["model"]}
        written = answer.completion_tokens if limit is None else min(limit, answer.completion_tokens)
        tokens = answer.tokens[:written]
        usage = {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": answer.prompt_tokens + written,
        }
        finish = "stop" if answer.ended and written == answer.completion_tokens else "length"
        if request.get("stream"):
            return _chunks(head, request, tokens, finish, usage)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": _text(answer, tokens)},
            "logprobs": _logprobs(request, tokens),
            "finish_reason": finish,
        }
        return head | {"object": "chat.completion", "choices": [choice], "usage": usage}


def _text(answer: RawAnswer, tokens: Sequence[AnswerToken]) -> str:
    return answer.text if len(tokens) == len(answer.tokens) else "".join(token.text for token in tokens)


def _chunks(
    head: dict[str, Any],
    request: Mapping[str, Any],
    tokens: Sequence[AnswerToken],
    finish: str,
    usage: dict[str, int],
) -> list[dict[str, Any]]:
    def chunk(delta: dict[str, str], *of: AnswerToken, finish: str | None = None) -> dict[str, Any]:
        logprobs = _logprobs(request, of) if of else None
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return head | {"object": "chat.completion.chunk", "choices": [choice]}

    chunks = [chunk({"role": "assistant", "content": ""})]
    chunks += [chunk({"content": token.text}, token) for token in tokens]
    chunks.append(chunk({}, finish=finish))
    if (request.get("stream_options") or {}).get("include_usage"):
        chunks = [each | {"usage": None} for each in chunks]
        chunks.append(head | {"object": "chat.completion.chunk", "choices": [], "usage": usage})
    return chunks


def _logprobs(request: Mapping[str, Any], tokens: Sequence[AnswerToken]) -> dict[str, Any] | None:
    """Of each token, and of those that begin the other values of a field where it decides one; most likely first."""
    if not request.get("logprobs"):
        return None
    count = request.get("top_logprobs") or 0
    content = []
    for token in tokens:
        best = sorted({**token.choices, token.text: token.logprob}.items(), key=lambda each: -each[1])
        top = [_logprob(*each) for each in best[:count]]
        content.append(_logprob(token.text, token.logprob) | {"top_logprobs": top})
    return {"content": content}


def _logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(text.encode())}


def _checked(request: Mapping[str, Any]) -> int | None:
    """The most tokens that the request wants. Raises ApiError for a field that Gen cannot follow."""
    for name, value in request.items():
        if name in _READ or name in _LIMITS or name in _OF_NO_USE or value is None:
            continue
        if name not in _WITHOUT_EFFECT:
            raise invalid(f"The request has a field {shown(name)}, which a guard does not read.")
        if value not in _WITHOUT_EFFECT[name] or isinstance(value, bool):
            raise invalid(f"A guard cannot follow {name}: its answer is what greedy decoding gives.")
    if not isinstance(request.get("messages"), list):
        raise invalid("The messages must be a list.")
    for name in ("stream", "logprobs"):
        if not isinstance(request.get(name), bool | None):
            raise invalid(f"{name} must be true or false.")
    if not isinstance(request.get("stream_options"), dict | None):
        raise invalid("stream_options must be an object.")
    _number(request, "n", 1, 1)
    top = _number(request, "top_logprobs", 0, MOST_ALTERNATIVES)
    if top and not request.get("logprobs"):
        raise invalid("top_logprobs goes with logprobs.")
    return next((limit for name in _LIMITS if (limit := _number(request, name, 1, 2**31)) is not None), None)


def _number(request: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = request.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise invalid(
            f"{name} must be " + (f"{least}." if least == most else f"a whole number from {least} to {most}.")
        )
    return value
