"""The text of a message that an LLM writes, or of a piece of one (`delta`), as a guard reads it.

It is one text: the reasoning, the content, the refusal, and then the arguments of function and tool calls.
`drop_unread` removes every field that this module does not know, since what the guard cannot read must not be shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qwen3guard_apps.openai.api_error import upstream_failed

JsonMessage = dict[str, Any]
_TEXT_FIELDS = ("reasoning_content", "reasoning", "content", "refusal")
_CALLS = ("function_call", "tool_calls")
_KNOWN = {"role", "name", "tool_call_id", *_TEXT_FIELDS, *_CALLS}


def _places(message: JsonMessage) -> Iterator[tuple[JsonMessage, str]]:
    """The holder and the key of each text, in the order in which they are read. Raises ApiError."""
    for key in _TEXT_FIELDS:
        yield message, key
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise _unreadable()
    for call in [{"function": message.get("function_call")}, *calls]:
        if not isinstance(call, dict):
            raise _unreadable()
        for kind, key in (("function", "arguments"), ("custom", "input")):
            part = call.get(kind) or {}
            if not isinstance(part, dict):
                raise _unreadable()
            yield part, key


def _filled(message: JsonMessage) -> Iterator[tuple[JsonMessage, str, str]]:
    """The holder, the key and the text of each text that is there. Raises ApiError."""
    for holder, key in _places(message):
        text = holder.get(key)
        if text is None:
            continue
        if not isinstance(text, str):
            raise _unreadable()
        yield holder, key, text


def written(message: JsonMessage) -> str:
    """All the text of `message`. Raises ApiError where a field that should be text is not."""
    return "".join(text for _, _, text in _filled(message))


def cut(message: JsonMessage, characters: int) -> None:
    """Shortens the text of `message` in place to its first `characters`. Raises ApiError as `written` does."""
    for holder, key, text in list(_filled(message)):
        holder[key] = text[: max(characters, 0)]
        characters -= len(text)


def drop_unread(message: JsonMessage) -> None:
    """Removes in place the fields that the guard does not read, unless they are empty."""
    for key in [key for key, value in message.items() if value and key not in _KNOWN]:
        del message[key]


def drop_calls(message: JsonMessage) -> None:
    """Removes in place the calls of functions and tools."""
    for key in _CALLS:
        message.pop(key, None)


def _unreadable() -> Exception:
    return upstream_failed("The LLM's answer has a field that is not text.", "upstream_unreadable")
