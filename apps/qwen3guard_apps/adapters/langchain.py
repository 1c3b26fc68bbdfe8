"""A LangChain runnable around a chat model. It gives only what the guard has cleared, invoked or streamed.

    model = guarded(ChatOpenAI(...), GuardClient("127.0.0.1:8001"))

Needs `pip install langchain-core` and a served Stream guard. Reasoning, text and tool calls are judged as one answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator
from functools import partial
from itertools import chain
from math import inf
from typing import Any, Literal

from langchain_core.messages import AIMessageChunk, BaseMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableGenerator
from qwen3guard_client import GuardClient, Policy

from qwen3guard_apps.adapters.langchain_reader import Written, as_openai
from qwen3guard_apps.openai import conversation


def guarded(
    model: Runnable[Any, BaseMessage],
    guard: GuardClient,
    *,
    policy: Policy | None = None,
    on_flag: Literal["stop", "raise", "mark"] = "stop",
) -> Runnable[Any, AIMessageChunk]:
    """A runnable that moderates the answers of `model`, a chat model or one with tools bound to it.

    The last chunk's `response_metadata["guard"]` describes a flag. The runnable raises Flagged if `on_flag` is
    "raise", a GuardError where the guard cannot judge or read the answer, and ApiError for a conversation that it
    cannot read.
    """

    def answer(inputs: Iterator[Any]) -> Generator[AIMessageChunk, None, None]:
        for value in inputs:
            messages = _messages(value)
            asked = conversation.read_conversation({"messages": [as_openai(each) for each in messages]})
            written = Written(model.stream(messages))
            moderate = partial(guard.moderate, messages=asked.messages, policy=policy, on_flag=on_flag)
            moderated = moderate(chain([asked.begun], written.texts()))
            cleared = -len(asked.begun)
            for segment in moderated:
                cleared += len(str(segment))
                yield from written.cleared(cleared)
            flag = moderated.flag
            for text in () if flag and on_flag == "stop" else written.late():
                alone = moderate([asked.begun, text])
                deque(alone, maxlen=0)
                flag = flag or alone.flag
            stopped = flag is not None and on_flag == "stop"
            yield from written.rest(cleared) if stopped else written.cleared(inf)
            reason = "content_filter" if stopped else written.finish_reason
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
