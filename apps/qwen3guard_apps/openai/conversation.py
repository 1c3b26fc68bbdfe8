"""The conversation of a chat request, as the guard can be told it: system's, user's and assistant's text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3guard_apps.openai import texts
from qwen3guard_apps.openai.api_error import ApiError, invalid

ROLES = {
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
    """`messages` end with the turn to judge; `begun` is an answer that the request begins itself, or empty."""

    messages: list[dict[str, str]]
    begun: str


def read(request: Mapping[str, Any]) -> Conversation:
    """Messages without text are left out. Raises ApiError for what is no conversation, or not text."""
    raw = request.get("messages")
    if not isinstance(raw, list):
        raise invalid("The messages must be a list.")
    found = [_message(number, each) for number, each in enumerate(raw, start=1)]
    told = [each for each in found if each["content"].strip()]
    begun = ""
    if told and raw[-1].get("role") == "assistant" and found[-1] is told[-1]:
        begun = told.pop()["content"]
    if not told:
        raise invalid("There is no message with text.")
    told[-1]["role"] = "user"
    return Conversation(told, begun)


def _message(number: int, raw: Any) -> dict[str, str]:
    if not isinstance(raw, dict) or raw.get("role") not in ROLES:
        raise invalid(f"Message {number} is not an object with one of the roles {', '.join(ROLES)}.")
    content = raw.get("content")
    if isinstance(content, list):
        content = "".join(text_of_part(part, f"Message {number}") for part in content)
    try:
        text = texts.written(raw | {"content": content})
    except ApiError:
        raise invalid(f"The content of message {number} is not text.") from None
    return {"role": ROLES[raw["role"]], "content": text}


def text_of_part(part: Any, where: str) -> str:
    """Raises ApiError for an image, a sound or a file, alone or beside a text: the guard reads text alone."""
    for kind in ("text", "refusal"):
        if isinstance(part, dict) and part.get("type") == kind and isinstance(part.get(kind), str):
            if any(value for key, value in part.items() if key not in ("type", kind, "cache_control")):
                break
            return str(part[kind])
    raise invalid(f"{where} has a part that is not text alone, which the guard cannot read.", "guard_not_text")
