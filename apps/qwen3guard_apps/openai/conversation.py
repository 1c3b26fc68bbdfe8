"""Reads the conversation of a chat request for the guard, by the contract's reader.

A guard judges the last turn alone. So messages that follow one another without an answer between them, as the results
of several calls do, are read as one turn: none of them is judged by nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qwen3guard_contract.errors import InputError
from qwen3guard_contract.message_text import text_of_message
from qwen3guard_contract.messages import read as read_messages

from qwen3guard_apps.openai.api_error import invalid, of_guard

BETWEEN = "\n\n"
"""What stands between the texts of messages that are one turn."""
_Turn = dict[str, str]


@dataclass(frozen=True)
class Conversation:
    """`messages` end with the turn to judge. `begun` is the start of the answer that the request brings, or empty."""

    messages: list[_Turn]
    begun: str


def read_conversation(request: Mapping[str, Any]) -> Conversation:
    """Reads the messages of `request`; messages without text are left out.

    The last message counts as the user's, whatever its role; the assistant's at the end are the start of the answer.
    What comes from the first user's message after an answer up to the next answer is one turn of the user's, also with
    system messages in it. Raises ApiError where there is no conversation, or where the guard cannot read it.
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
    begun: list[str] = []
    while messages and count == len(raw) and messages[-1]["role"] == "assistant":
        begun.append(messages.pop()["content"])
    if not messages:
        raise invalid("There is no message with text.")
    messages[-1]["role"] = "user"
    return Conversation(_joined(messages), BETWEEN.join(reversed(begun)))


def _joined(messages: Iterable[_Turn]) -> list[_Turn]:
    turns: list[tuple[str, list[str]]] = []
    for each in messages:
        if turns and turns[-1][0] == "user" and each["role"] != "assistant":
            turns[-1][1].append(each["content"])
        else:
            turns.append((each["role"], [each["content"]]))
    return [{"role": role, "content": BETWEEN.join(contents)} for role, contents in turns]


def _up_to_the_last_text(raw: list[Any]) -> int:
    """The number of messages without those at the end that have no text."""
    count = len(raw)
    while (
        count and isinstance(raw[count - 1], dict) and not text_of_message(raw[count - 1], f"Message {count}").strip()
    ):
        count -= 1
    return count
