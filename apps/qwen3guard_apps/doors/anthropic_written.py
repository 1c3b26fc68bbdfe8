"""What a client of Anthropic's messages gets: blocks and events, written from what is cleared of a chat completion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from qwen3guard_apps.doors.blocks import CALL_KINDS, BlockPiece, pieces_of
from qwen3guard_apps.doors.door import JsonBody
from qwen3guard_apps.doors.sealed import is_opaque, sealed
from qwen3guard_apps.openai import fields
from qwen3guard_apps.openai.shapes import Number, ObjectOf, Words

END_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""Why an answer ends, and what that is called in chat completions."""
_COUNT = Number("a number of tokens")
_COUNTS = dict.fromkeys(("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"), _COUNT)
MESSAGES_USAGE_FIELDS: fields.Table = {
    **dict.fromkeys(("input_tokens", "output_tokens"), _COUNT),
    **dict.fromkeys(("cache_creation_input_tokens", "cache_read_input_tokens"), _COUNT),
    "cache_creation": ObjectOf(_COUNTS, "numbers of tokens"),
    "service_tier": Words(("standard", "priority", "batch")),
}


class WrittenMessage:
    """One message. Whoever reads the LLM's answer fills in what no text is."""

    def __init__(self) -> None:
        self.reason = "end_turn"
        """The LLM's reason for the end."""
        self.usage: JsonBody = {"input_tokens": 0, "output_tokens": 0}
        self.opaque: dict[int, list[str]] = {}
        """The pieces of the signature of a thinking, or the data of a redacted one, by the block's number."""
        self.redacted: set[int] = set()
        self._content: list[JsonBody] = []
        self._text: list[str] = []
        """Of the open block."""
        self._open: tuple[str, int | None] | None = None
        self._has_begun = False

    @staticmethod
    def stopped(choice: JsonBody) -> bool:
        """Whether the guard ends the answer."""
        flagged = (choice.get("guard") or {}).get("flagged")
        return bool(flagged) and choice.get("finish_reason") == "content_filter"

    def message(self, judged: JsonBody, choice: JsonBody) -> JsonBody:
        """The whole message, after all pieces are written."""
        list(self._close(complete=not self.stopped(choice)))
        return (
            self._head(judged)
            | {"content": self._content}
            | self._reason(choice)
            | {"usage": self.usage}
            | {name: choice[name] for name in ("guard",) if name in choice}
        )

    def events(self, chunk: JsonBody) -> Iterator[JsonBody]:
        if not self._has_begun:
            self._has_begun = True
            start = self._head(chunk) | {"content": [], "stop_reason": None, "stop_sequence": None}
            yield {"type": "message_start", "message": start | {"usage": dict(self.usage)}}
        for choice in chunk["choices"]:
            is_last = choice.get("finish_reason") is not None
            mark = {"guard": choice["guard"]} if "guard" in choice else {}
            for piece in pieces_of(choice.get("delta") or {}):
                for event in self.write(piece):
                    yield event | ({} if is_last else mark)
            if is_last:
                yield from self._close(complete=not self.stopped(choice))
                yield {"type": "message_delta", "delta": self._reason(choice), "usage": dict(self.usage)} | mark
                yield {"type": "message_stop"}

    def write(self, piece: BlockPiece) -> list[JsonBody]:
        """The events of a piece, which begins a block, or goes on with one."""
        return list(self._write(piece))

    def _write(self, piece: BlockPiece) -> Iterator[JsonBody]:
        kind = "tool_use" if piece.kind in CALL_KINDS else "thinking" if piece.kind == "thinking" else "text"
        goes_on = self._open is not None and (piece.number is None or self._open[1] == piece.number)
        if not goes_on:
            yield from self._close(complete=True)
            yield from self._begin(kind, piece)
        if not piece.text or self._open is None or self._open[0] == "redacted_thinking":
            return
        kind = self._open[0]
        self._text.append(piece.text)
        named = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}
        delta, field = named.get(kind, ("input_json_delta", "partial_json"))
        yield self._event("content_block_delta", delta={"type": delta, field: piece.text})

    def _begin(self, kind: str, piece: BlockPiece) -> Iterator[JsonBody]:
        is_redacted = kind == "thinking" and piece.number in self.redacted
        self._open = ("redacted_thinking" if is_redacted else kind, piece.number)
        self._text = []
        if kind == "tool_use":
            called = piece.call.get("function") or piece.call.get("custom") or {}
            block: JsonBody = {"type": kind, "id": piece.call.get("id"), "name": called.get("name") or "", "input": {}}
        elif is_redacted:
            block = {"type": "redacted_thinking", "data": self._sealed(piece.number)}
        else:
            block = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
        self._content.append(block)
        yield self._event("content_block_start", content_block=dict(block))

    def _close(self, *, complete: bool) -> Iterator[JsonBody]:
        """Ends the open block. What is not `complete` has no signature."""
        if self._open is None:
            return
        kind, number = self._open
        block, text = self._content[-1], "".join(self._text)
        if kind == "tool_use":
            block["input"] = _object(text)
        elif kind in block:
            block[kind] = text
        if kind == "thinking" and complete and (signature := self._sealed(number)):
            block["signature"] = signature
            yield self._event("content_block_delta", delta={"type": "signature_delta", "signature": signature})
        yield self._event("content_block_stop")
        self._open = None

    def _event(self, kind: str, **more: Any) -> JsonBody:
        return {"type": kind, "index": len(self._content) - 1} | more

    def _sealed(self, number: int | None) -> str:
        value = "".join(self.opaque.get(-1 if number is None else number, ()))
        return sealed(value) if value and is_opaque(value) else ""

    @staticmethod
    def _head(judged: JsonBody) -> JsonBody:
        return {"id": judged["id"], "type": "message", "role": "assistant", "model": judged["model"]}

    def _reason(self, choice: JsonBody) -> JsonBody:
        """Why the message ends: in the LLM's own word, if the guard has not ended it."""
        sequence = choice.get("stop_reason") if self.reason == "stop_sequence" else None
        stopped = self.stopped(choice)
        return {"stop_reason": "refusal" if stopped else self.reason, "stop_sequence": None if stopped else sequence}


def _object(text: str) -> Any:
    """The arguments of a call, which are JSON. As a text where they are none, as with NaN or a number too large."""
    try:
        read = json.loads(text) if text.strip() else {}
        json.dumps(read, allow_nan=False)
        return read
    except (ValueError, RecursionError):
        return text
