"""A LangChain runnable around a chat model. It gives only text that the guard has cleared, invoked or streamed.

    model = guarded(ChatOpenAI(...), GuardClient("127.0.0.1:8001"))

Needs `pip install langchain-core` and a served Stream guard. Text alone passes: a tool call of the model is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage, convert_to_messages, convert_to_openai_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableGenerator
from qwen3guard_client import GuardClient, Policy
from qwen3guard_contract.errors import InvalidRequest

from qwen3guard_apps.openai import conversation


def guarded(
    model: BaseChatModel,
    guard: GuardClient,
    *,
    policy: Policy | None = None,
    on_flag: Literal["stop", "raise", "mark"] = "stop",
) -> Runnable[Any, AIMessageChunk]:
    """A runnable that moderates the answers of `model`; the last chunk's `response_metadata["guard"]` describes a flag.

    The runnable raises Flagged if `on_flag` is "raise", a GuardError where the guard cannot judge, InvalidRequest for a
    tool call, and ApiError for a conversation that is not text.
    """

    def answer(inputs: Iterator[Any]) -> Generator[AIMessageChunk, None, None]:
        for value in inputs:
            messages = _messages(value)
            readable = conversation.read({"messages": convert_to_openai_messages(messages)}).messages
            moderated = guard.moderate(_written(model, messages), messages=readable, policy=policy, on_flag=on_flag)
            for segment in moderated:
                yield AIMessageChunk(content=str(segment))
            flag = moderated.flag
            reason = "content_filter" if flag and on_flag == "stop" else "stop"
            metadata = {"finish_reason": reason, "guard": str(flag) if flag else None}
            yield AIMessageChunk(content="", response_metadata=metadata)

    async def answer_async(inputs: AsyncIterator[Any]) -> AsyncIterator[AIMessageChunk]:
        chunks = answer(iter([value async for value in inputs]))
        try:
            while chunk := await asyncio.to_thread(next, chunks, None):
                yield chunk
        finally:
            await asyncio.to_thread(chunks.close)

    return RunnableGenerator(answer, answer_async)


def _messages(value: Any) -> list[BaseMessage]:
    if isinstance(value, PromptValue):
        return value.to_messages()
    return convert_to_messages([value] if isinstance(value, str) else value)


def _written(model: BaseChatModel, messages: list[BaseMessage]) -> Iterator[str]:
    """The text that `model` writes, piece by piece. Raises InvalidRequest where it calls a tool."""
    for chunk in model.stream(messages):
        if getattr(chunk, "tool_calls", None) or getattr(chunk, "tool_call_chunks", None):
            raise InvalidRequest("The model calls a tool, which this adapter cannot judge.")
        if chunk.text:
            yield str(chunk.text)
