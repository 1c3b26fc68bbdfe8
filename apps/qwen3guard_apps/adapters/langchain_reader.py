"""LangChain's messages, and the chunks of a model's answer, read as chat messages in OpenAI's form."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from math import inf
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from qwen3guard_contract.errors import InvalidMessages
from qwen3guard_contract.message_text import IDENTIFIER, places, text_of_places, unread
from qwen3guard_contract.text import shown

from qwen3guard_apps.openai.escapes import Escapes
from qwen3guard_apps.openai.interleaved import Interleaved, owners_of

_ROLES = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant"}
_KWARGS = ("reasoning_content", "reasoning", "refusal", "function_call")
_CALL_BLOCKS = ("tool_use", "input_json_delta", "tool_call", "tool_call_chunk", "function_call")
"""Blocks that repeat what the message's tool calls say."""


def as_openai(message: BaseMessage) -> dict[str, Any]:
    """A message of a conversation, for the reader of conversations, which refuses what it cannot read."""
    role = message.role if isinstance(message, ChatMessage) else _ROLES.get(message.type, message.type)
    if not isinstance(message, AIMessage):
        return {"role": role, "content": message.content}
    calls = [
        {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
        for call in _calls(message)
    ]
    kwargs = {key: message.additional_kwargs.get(key) for key in _KWARGS}
    return {"role": role, "content": _content(message.content), "tool_calls": calls, **kwargs}


class Written:
    """What a model writes, chunk by chunk. A chunk is given when all its text is cleared, and all before it.

    Tool calls are given at the end, since half of one must not be run. Fields that are not judged are removed.
    """

    def __init__(self, chunks: Iterator[BaseMessage]) -> None:
        self._chunks = chunks
        self._waiting: deque[tuple[AIMessageChunk, float, float]] = deque()
        """Each chunk, with where its text begins and up to where text must be cleared for it."""
        self._length = 0
        self._escapes = Escapes()
        self._interleaved = Interleaved()
        self.finish_reason = "stop"
        """As the model tells it."""

    def texts(self) -> Iterator[str]:
        """The text of each chunk, in the order in which it is judged. Raises InvalidMessages."""
        for chunk in self._chunks:
            raw = as_openai(chunk)
            for _, key, place in unread(raw, "The answer"):
                raise InvalidMessages(f"{place} has a field {shown(key)}, which the guard does not read.")
            of = owners_of({}, raw)
            found = self._escapes.decoded(of, places(raw, "The answer"))
            again = self._interleaved.again(of, raw, found)
            text = "" if again is None else again + text_of_places(found)
            if reason := chunk.response_metadata.get("finish_reason"):
                self.finish_reason = reason if _says_nothing(reason) else "stop"
            begin = inf if again is None else self._length + len(again)
            self._length += len(text)
            self._waiting.append((_judged_alone(chunk), begin, inf if again is None or _calls(chunk) else self._length))
            yield text

    def late(self) -> list[str]:
        """The texts that are to be judged each as an answer of its own, after all of `texts`."""
        return self._interleaved.fields() if any(begin == inf for _, begin, _ in self._waiting) else []

    def cleared(self, characters: float) -> Iterator[AIMessageChunk]:
        """The chunks that may be given because so many characters are cleared; all of them if it is infinite."""
        while self._waiting and self._waiting[0][2] <= characters:
            yield self._waiting.popleft()[0]

    def rest(self, characters: int) -> Iterator[AIMessageChunk]:
        """The beginning of the next chunk, where the answer is stopped after so many characters."""
        for chunk, begin, _ in list(self._waiting)[:1]:
            if isinstance(chunk.content, str) and not chunk.additional_kwargs and begin < characters:
                yield AIMessageChunk(content=chunk.content[: characters - int(begin)])


def _judged_alone(chunk: BaseMessage) -> AIMessageChunk:
    """The chunk without what is not judged."""
    kwargs = {key: chunk.additional_kwargs[key] for key in _KWARGS if chunk.additional_kwargs.get(key)}
    told = chunk.response_metadata.items()
    metadata = {key: value for key, value in told if key != "finish_reason" and _says_nothing(value)}
    return AIMessageChunk(
        content=_content(chunk.content),
        additional_kwargs=kwargs,
        response_metadata=metadata,
        tool_call_chunks=_calls(chunk),
        usage_metadata=getattr(chunk, "usage_metadata", None),
        id=chunk.id if _says_nothing(chunk.id) else None,
    )


def _says_nothing(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and bool(IDENTIFIER.fullmatch(value)))


def _calls(message: BaseMessage) -> list[ToolCallChunk]:
    """The calls of a message, or the pieces of calls of a chunk, with their arguments as text."""
    if pieces := getattr(message, "tool_call_chunks", None):
        return list(pieces)
    calls = [*getattr(message, "tool_calls", []), *getattr(message, "invalid_tool_calls", [])]
    return [
        tool_call_chunk(
            name=call["name"],
            args=call["args"] if isinstance(call["args"], str) else json.dumps(call["args"], ensure_ascii=False),
            id=call["id"],
            index=index,
        )
        for index, call in enumerate(calls)
    ]


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [found for block in content if (found := _block(block)) is not None]


def _block(block: Any) -> Any:
    """A block of LangChain's as a part of OpenAI's. None for what a tool call repeats. Others the reader refuses."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind in _CALL_BLOCKS:
        return None
    if kind == "reasoning":
        parts = [block.get("reasoning") or "", *(each.get("text") or "" for each in block.get("summary") or ())]
        return {"type": "thinking", "thinking": "".join(parts)}
    if kind == "thinking":
        return {"type": "thinking", "thinking": block.get("thinking") or ""}
    if kind == "redacted_thinking":  # encrypted: read by nobody
        return None
    if isinstance(block, dict):
        return {key: value for key, value in block.items() if key not in ("index", "id")}
    return block
