"""What an LLM writes in a message, or in a part of one (`delta`), that a guard can read.

Content, refusal, reasoning and the arguments of tools are judged, as one text in this order. Fields that this module
does not know are removed: what the guard cannot read is not shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qwen3guard_apps.openai.api_error import upstream_failed

Message = dict[str, Any]
_OWN = ("reasoning_content", "reasoning", "content", "refusal")
_CALLS = ("function_call", "tool_calls")
_KNOWN = {"role", "name", "tool_call_id", *_OWN, *_CALLS}


def _places(message: Message) -> Iterator[tuple[Message, str]]:
    """Each text's holder and key."""
    for key in _OWN:
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


def _filled(message: Message) -> Iterator[tuple[Message, str, str]]:
    for holder, key in _places(message):
        text = holder.get(key)
        if text is None:
            continue
        if not isinstance(text, str):
            raise _unreadable()
        yield holder, key, text


def written(message: Message) -> str:
    """All of its text. Raises ApiError where a field that should be text is none."""
    return "".join(text for _, _, text in _filled(message))


def cut(message: Message, characters: int) -> None:
    """Keeps the first of them."""
    for holder, key, text in list(_filled(message)):
        holder[key] = text[: max(characters, 0)]
        characters -= len(text)


def drop_unread(message: Message) -> None:
    for key in [key for key, value in message.items() if value and key not in _KNOWN]:
        del message[key]


def drop_calls(message: Message) -> None:
    for key in _CALLS:
        message.pop(key, None)


def _unreadable() -> Exception:
    return upstream_failed("The LLM's answer has a field that is not text.", "upstream_unreadable")
