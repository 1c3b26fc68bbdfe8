"""A LangChain runnable around a chat model: what it gives is cleared, whether invoked or streamed.

    model = guarded(ChatOpenAI(...), GuardClient("127.0.0.1:8001"))

Needs `pip install langchain-core` and a served Stream guard. Text alone passes: tool calls of the model are refused.
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
    """The last chunk tells of a flag, in `response_metadata["guard"]`.

    Raises Flagged, where it is asked to, a GuardError where the guard cannot say, ApiError for what is not text.
    """

    def answer(inputs: Iterator[Any]) -> Generator[AIMessageChunk, None, None]:
        for given in inputs:
            messages = _messages(given)
            told = conversation.read({"messages": convert_to_openai_messages(messages)}).messages
            moderated = guard.moderate(_written(model, messages), messages=told, policy=policy, on_flag=on_flag)
            for segment in moderated:
                yield AIMessageChunk(content=str(segment))
            flag = moderated.flag
            reason = "content_filter" if flag and on_flag == "stop" else "stop"
            metadata = {"finish_reason": reason, "guard": str(flag) if flag else None}
            yield AIMessageChunk(content="", response_metadata=metadata)

    async def answer_awaited(inputs: AsyncIterator[Any]) -> AsyncIterator[AIMessageChunk]:
        chunks = answer(iter([given async for given in inputs]))
        try:
            while chunk := await asyncio.to_thread(next, chunks, None):
                yield chunk
        finally:
            await asyncio.to_thread(chunks.close)

    return RunnableGenerator(answer, answer_awaited)


def _messages(given: Any) -> list[BaseMessage]:
    if isinstance(given, PromptValue):
        return given.to_messages()
    return convert_to_messages([given] if isinstance(given, str) else given)


def _written(model: BaseChatModel, messages: list[BaseMessage]) -> Iterator[str]:
    for chunk in model.stream(messages):
        if getattr(chunk, "tool_calls", None) or getattr(chunk, "tool_call_chunks", None):
            raise InvalidRequest("The model calls a tool, which this adapter cannot judge.")
        if chunk.text:
            yield str(chunk.text)
