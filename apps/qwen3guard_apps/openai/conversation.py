"""Reads the conversation of a chat request for the guard: text in the roles system, user and assistant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3guard_apps.openai import texts
from qwen3guard_apps.openai.api_error import ApiError, invalid

TURNS = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    # Qwen's own chat template writes a tool's result as a user's turn.
    "tool": "user",
    "function": "user",
}


@dataclass(frozen=True)
class Conversation:
    """`messages` end with the turn to judge. `begun` is the start of the answer that the request brings, or empty."""

    messages: list[dict[str, str]]
    begun: str


def read(request: Mapping[str, Any]) -> Conversation:
    """Reads the messages of `request`; messages without text are left out.

    The last message counts as the user's, whatever its role; an assistant's is the start of the answer. Raises ApiError
    where there is no conversation, or where a content is not text.
    """
    raw = request.get("messages")
    if not isinstance(raw, list):
        raise invalid("The messages must be a list.")
    messages = [_message(number, each) for number, each in enumerate(raw, start=1)]
    with_text = [message for message in messages if message["content"].strip()]
    begun = ""
    if with_text and raw[-1].get("role") == "assistant" and messages[-1] is with_text[-1]:
        begun = with_text.pop()["content"]
    if not with_text:
        raise invalid("There is no message with text.")
    with_text[-1]["role"] = "user"
    return Conversation(with_text, begun)


def _message(number: int, raw: Any) -> dict[str, str]:
    if not isinstance(raw, dict) or raw.get("role") not in TURNS:
        raise invalid(f"Message {number} is not an object with one of the roles {', '.join(TURNS)}.")
    content = raw.get("content")
    if isinstance(content, list):
        content = "".join(text_of_part(part, f"Message {number}") for part in content)
    try:
        text = texts.written(raw | {"content": content})
    except ApiError:
        raise invalid(f"The content of message {number} is not text.") from None
    return {"role": TURNS[raw["role"]], "content": text}


def text_of_part(part: Any, where: str) -> str:
    """The text of one part of a content.

    Raises ApiError for an image, a sound or a file, and for a text with other fields: the guard reads text alone.
    """
    for kind in ("text", "refusal"):
        if isinstance(part, dict) and part.get("type") == kind and isinstance(part.get(kind), str):
            if any(value for key, value in part.items() if key not in ("type", kind, "cache_control")):
                break
            return str(part[kind])
    raise invalid(f"{where} has a part that is not text alone, which the guard cannot read.", "guard_not_text")
