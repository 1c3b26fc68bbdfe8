"""Reads the conversation of a chat request for the guard, by the contract's reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3guard_contract.errors import InputError
from qwen3guard_contract.message_text import text_of_message
from qwen3guard_contract.messages import read as read_messages

from qwen3guard_apps.openai.api_error import invalid, of_guard


@dataclass(frozen=True)
class Conversation:
    """`messages` end with the turn to judge. `begun` is the start of the answer that the request brings, or empty."""

    messages: list[dict[str, str]]
    begun: str


def read_conversation(request: Mapping[str, Any]) -> Conversation:
    """Reads the messages of `request`; messages without text are left out.

    The last message counts as the user's, whatever its role; an assistant's is the start of the answer. Raises ApiError
    where there is no conversation, or where the guard cannot read it.
    """
    raw = request.get("messages")
    if not isinstance(raw, list):
        raise invalid("The messages must be a list.")
    try:
        count = _up_to_the_last_text(raw)
        messages = (
            [{"role": each.role, "content": each.content} for each in read_messages(raw[:count])] if count else []
        )
    except InputError as error:
        raise of_guard(error) from None
    begun = ""
    if messages and count == len(raw) and messages[-1]["role"] == "assistant":
        begun = messages.pop()["content"]
    if not messages:
        raise invalid("There is no message with text.")
    messages[-1]["role"] = "user"
    return Conversation(messages, begun)


def _up_to_the_last_text(raw: list[Any]) -> int:
    """The number of messages without those at the end that have no text."""
    count = len(raw)
    while (
        count and isinstance(raw[count - 1], dict) and not text_of_message(raw[count - 1], f"Message {count}").strip()
    ):
        count -= 1
    return count
