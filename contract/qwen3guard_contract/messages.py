"""Reads a conversation in OpenAI's chat form into checked messages.

What cannot be read is refused by name, because a guard that ignores it would judge another conversation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qwen3guard_contract.errors import (
    EmptyText,
    InvalidMessages,
    InvalidRequest,
    TextTooLong,
    UnknownRole,
)
from qwen3guard_contract.json_values import MOST_VALUES, has_too_many
from qwen3guard_contract.message_text import text_of_message
from qwen3guard_contract.text import shown, valid_text

BYTES_PER_TOKEN = 16
"""A text of more bytes than this times the context is refused. Prose has 3 to 5 bytes for each token; only very long
runs of one character have more than 16."""
ROLES = ("system", "user", "assistant")
TURNS = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    # Qwen's own chat template writes a tool's result as a user's turn.
    "tool": "user",
    "function": "user",
}
"""The roles of messages, and the one of ROLES as which each is read."""
CONTEXT = 32_768
"""The number of tokens in the context of the published guards."""
JSON_BYTES = 6
"""The most bytes of JSON for one byte of text: an escape such as \\u0041."""


@dataclass(frozen=True)
class Message:
    role: str
    content: str


def parse_messages(data: bytes, limit: int = CONTEXT) -> list[Message]:
    """Reads messages in OpenAI's form: a JSON list of {"role", "content"}, as `read` does.

    Raises what `read` raises, and InvalidMessages for an object with two fields of one name. Raises TextTooLong, before
    parsing, if the JSON is longer than any text for a context of `limit` tokens, and for more than MOST_VALUES.
    """
    longest = JSON_BYTES * BYTES_PER_TOKEN * limit
    if len(data) > longest:
        raise TextTooLong(f"The messages have {len(data)} bytes of JSON; a context of {limit} tokens takes {longest}.")
    try:
        raw = json.loads(valid_text(data, "The list of messages"), object_pairs_hook=_object)
    except (ValueError, RecursionError):  # a number of thousands of digits raises a plain ValueError
        raise InvalidMessages("The messages are not valid JSON.") from None
    if not isinstance(raw, list):
        raise InvalidMessages("The messages must be a JSON list.")
    if has_too_many(raw):
        raise TextTooLong(f"The messages have more than {MOST_VALUES:,} values of JSON.")
    return read(raw, limit)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Raises InvalidMessages if two fields have the same name: Python's parser would silently
    drop the first."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidMessages(f"The messages have an object with two fields {shown(name)}.")
        fields[name] = value
    return fields


def read(messages: list[Any], limit: int = CONTEXT) -> list[Message]:
    """Reads messages in OpenAI's form that were parsed already. Messages without text are left out.

    Raises InvalidMessages, UnknownRole, InvalidEncoding, EmptyText if there is no text or none in the last message, and
    TextTooLong for more messages than a context of `limit` tokens can have.
    """
    if len(messages) > limit:
        raise TextTooLong(f"There are {len(messages)} messages; a context of {limit} tokens has no room for them.")
    found = [_message(number, item) for number, item in enumerate(messages, start=1)]
    if not any(each.content.strip() for each in found):
        raise EmptyText("The messages have no text." if found else "The list of messages is empty.")
    if not found[-1].content.strip():
        raise EmptyText(f"Message {len(found)}, the last one, has no text.")
    return [each for each in found if each.content.strip()]


def _message(number: int, raw: Any) -> Message:
    where = f"Message {number}"
    if not isinstance(raw, dict) or not isinstance(raw.get("role"), str):
        raise InvalidMessages(f"{where} is not an object with a role.")
    if raw["role"] not in TURNS:
        raise UnknownRole(f"The role of message {number} is none of {', '.join(TURNS)}.")
    return Message(TURNS[raw["role"]], text_of_message(raw, where))


def message(role: str, content: bytes | str, what: str) -> Message:
    """Returns a checked message. Raises InvalidEncoding, or EmptyText if there is only white space. `what` names the
    content in the error's sentence."""
    text = valid_text(content, what)
    if not text.strip():
        raise EmptyText(f"{what} is empty.")
    return Message(role, text)


def conversation(
    messages: bytes | None, prompt: bytes | None, response: bytes | None, limit: int = CONTEXT, *, recent: bool = False
) -> list[Message]:
    """The conversation of a request, which has either messages, or a prompt with or without its response.

    If only the `recent` turns must fit, the messages may be longer than a small context.

    Raises InvalidRequest for both, and what `parse_messages` raises.
    """
    if messages is not None:
        if prompt is not None or response is not None:
            raise InvalidRequest("Send either messages or a prompt, not both.")
        return parse_messages(messages, max(limit, CONTEXT) if recent else limit)
    if prompt is None:
        raise EmptyText("There is neither a prompt nor a list of messages.")
    turns = [message("user", prompt, "The prompt")]
    if response is not None:
        turns.append(message("assistant", response, "The response"))
    return turns
