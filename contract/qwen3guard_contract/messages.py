"""Reads a conversation in OpenAI's chat form into checked messages.

What cannot be read is refused by name, because a guard that ignores it would judge another conversation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qwen3guard_contract.errors import (
    EmptyText,
    InvalidEncoding,
    InvalidMessages,
    InvalidRequest,
    TextTooLong,
    UnknownRole,
)

BYTES_PER_TOKEN = 16
"""A text of more bytes than this times the context is refused. Prose has 3 to 5 bytes for each token; only very long
runs of one character have more than 16."""
ROLES = ("system", "user", "assistant")
CONTEXT = 32_768
"""The number of tokens in the context of the published guards."""
JSON_BYTES = 6
"""The most bytes of JSON for one byte of text: an escape such as \\u0041."""
TEXT_TYPES = ("text", "input_text", "output_text")
"""The types of message parts that are text."""
SHOWN_CHARACTERS = 40
"""An error's sentence shows at most this many characters of a name that the caller chose."""


@dataclass(frozen=True)
class Message:
    role: str
    content: str


def valid_text(data: bytes | str, what: str) -> str:
    """Returns `data` as valid Unicode text. `what` names it in the error's sentence.

    Raises InvalidEncoding for bytes that are not UTF-8, and for lone surrogates.
    """
    try:
        if isinstance(data, bytes):
            return data.decode("utf-8")
        data.encode("utf-8")
        return data
    except UnicodeError:
        raise InvalidEncoding(f"{what} is not valid UTF-8.") from None


def parse_messages(data: bytes, limit: int = CONTEXT) -> list[Message]:
    """Reads messages in OpenAI's form: a JSON list of {"role", "content"}. A content is a string or a list of text
    parts.

    A field that is not read is refused, because a guard that ignores it would judge another conversation. So it raises
    InvalidMessages for another field of a message or of a part, unless its value is null or empty, and for a part that
    is not text. It also raises UnknownRole, EmptyText and InvalidEncoding, and TextTooLong, before parsing, if the JSON
    is longer than any text for a context of `limit` tokens.
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
    if not raw:
        raise EmptyText("The list of messages is empty.")
    return [_message(number, item) for number, item in enumerate(raw, start=1)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Raises InvalidMessages if two fields have the same name: Python's parser would silently
    drop the first."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidMessages(f"The messages have an object with two fields {_shown(name)}.")
        fields[name] = value
    return fields


def _message(number: int, raw: Any) -> Message:
    if not isinstance(raw, dict) or not isinstance(raw.get("role"), str):
        raise InvalidMessages(f"Message {number} is not an object with a role.")
    if raw["role"] not in ROLES:
        raise UnknownRole(f"The role of message {number} is none of {', '.join(ROLES)}.")
    _check_fields(raw, {"role", "content"}, f"Message {number}")
    content = raw.get("content")
    if content is None:
        raise EmptyText(f"Message {number} has no text.")
    if isinstance(content, list):
        parts = enumerate(content, start=1)
        content = "".join(_part(part, f"Part {index} of message {number}") for index, part in parts)
    if not isinstance(content, str):
        raise InvalidMessages(f"The content of message {number} is not text.")
    return message(raw["role"], content, f"The content of message {number}")


def _part(raw: Any, where: str) -> str:
    """The text of one part of a message's content. Raises InvalidMessages."""
    if not isinstance(raw, dict):
        raise InvalidMessages(f"{where} is not an object of the type text.")
    kind, text = raw.get("type"), raw.get("text")
    if kind is not None and not isinstance(kind, str):
        raise InvalidMessages(f"{where} has a type that is not a string.")
    if kind is not None and kind not in TEXT_TYPES:
        raise InvalidMessages(f"{where} has the type {_shown(kind)}; the guard reads text alone.")
    _check_fields(raw, {"type", "text"}, where)
    if not isinstance(text, str):
        raise InvalidMessages(f"{where} has no string as its text.")
    return text


def _check_fields(raw: dict[str, Any], read: set[str], where: str) -> None:
    """Raises InvalidMessages for a field that is not in `read` and is not empty."""
    for name, value in raw.items():
        if name not in read and value is not None and value not in ("", [], {}):
            raise InvalidMessages(f"{where} has a field {_shown(name)}, which the guard does not read.")


def _shown(name: str) -> str:
    """A name that the caller chose, made fit for an error's sentence: short, on one line, without control
    characters."""
    shown = "".join(each if each.isprintable() else "?" for each in name[:SHOWN_CHARACTERS])
    return f"'{shown}...'" if len(name) > SHOWN_CHARACTERS else f"'{shown}'"


def message(role: str, content: bytes | str, what: str) -> Message:
    """Returns a checked message. Raises InvalidEncoding, or EmptyText if there is only white space. `what` names the
    content in the error's sentence."""
    text = valid_text(content, what)
    if not text.strip():
        raise EmptyText(f"{what} is empty.")
    return Message(role, text)


def conversation(
    messages: bytes | None, prompt: bytes | None, response: bytes | None, limit: int = CONTEXT
) -> list[Message]:
    """The conversation of a request, which has either messages, or a prompt with or without its response.

    Raises InvalidRequest for both, and what `parse_messages` raises.
    """
    if messages is not None:
        if prompt is not None or response is not None:
            raise InvalidRequest("Send either messages or a prompt, not both.")
        return parse_messages(messages, limit)
    if prompt is None:
        raise EmptyText("There is neither a prompt nor a list of messages.")
    turns = [message("user", prompt, "The prompt")]
    if response is not None:
        turns.append(message("assistant", response, "The response"))
    return turns
