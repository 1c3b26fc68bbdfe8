"""The pieces of a message that is shown, in APIs whose messages are lists of blocks.

On its way through the proxy a block is a part, or a call, of a chat message, and has its number as `index`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from qwen3guard_contract.message_text import PART_FIELDS, TEXT_FIELDS

from qwen3guard_apps.openai.choice import has_no_text, unreadable

MOST_BLOCKS = 1000
CALL_KINDS = ("function", "custom")


class BlockPiece(NamedTuple):
    """A text of a block. `kind` is the type of its part, or one of CALL_KINDS. `number` is None for what the proxy adds
    itself. `call` is the tool call, for those."""

    kind: str
    number: int | None
    text: str
    call: dict[str, Any]


def pieces_of(message: dict[str, Any]) -> list[BlockPiece]:
    """Those of a chat message, or of a piece of one, in the order of their blocks."""
    found = list(_pieces(message))
    last = max((piece.number or 0 for piece in found), default=0)
    return sorted(found, key=lambda piece: last if piece.number is None else piece.number)


def _pieces(message: dict[str, Any]) -> Iterator[BlockPiece]:
    for field in TEXT_FIELDS:
        value = message.get(field)
        if isinstance(value, str) and value:
            yield BlockPiece("text", None, value, {})
        for part in value if isinstance(value, list) else ():
            if isinstance(part, str):
                yield BlockPiece("text", None, part, {})
            else:
                kind = part.get("type") or "text"
                yield BlockPiece(kind, part.get("index"), part.get(PART_FIELDS[kind]) or "", {})
    for call in message.get("tool_calls") or ():
        kind = next((each for each in CALL_KINDS if isinstance(call.get(each), dict)), CALL_KINDS[0])
        value = (call.get(kind) or {}).get("arguments" if kind == "function" else "input")
        text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
        yield BlockPiece(kind, call.get("index"), text, call)


def number_of(value: Any, most: int = MOST_BLOCKS) -> int:
    """An index that an LLM gives. Raises ApiError for what is none below `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < most:
        raise unreadable()
    return value


def text_in(value: Any) -> str:
    """A text that an LLM gives; empty for what has none. Raises ApiError for what is no text and may have some."""
    if isinstance(value, str):
        return value
    if has_no_text(value):
        return ""
    raise unreadable()
