"""What a client of OpenAI's Responses gets: items and events, written from what is cleared of a chat completion."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from qwen3guard_apps.doors.blocks import CALL_KINDS, BlockPiece, pieces_of
from qwen3guard_apps.doors.door import JsonBody
from qwen3guard_apps.doors.sealed import is_opaque, sealed
from qwen3guard_apps.openai import fields
from qwen3guard_apps.openai.shapes import Number, ObjectOf

PARTS_OF_AN_ITEM = 1000
"""The number of a part, or of a call, is that of its item times this, and its own place in it."""
_COUNT = Number("a number of tokens")
RESPONSES_USAGE_FIELDS: fields.Table = {
    **dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), _COUNT),
    "input_tokens_details": ObjectOf(fields.USAGE_DETAILS_FIELDS, "numbers of tokens"),
    "output_tokens_details": ObjectOf(fields.USAGE_DETAILS_FIELDS, "numbers of tokens"),
}
_ECHOED: Mapping[str, Any] = {
    **dict.fromkeys(("instructions", "max_output_tokens", "max_tool_calls", "top_logprobs", "user"), None),
    **dict.fromkeys(("reasoning", "service_tier", "safety_identifier", "prompt_cache_key"), None),
    **{"metadata": {}, "parallel_tool_calls": True, "store": False, "text": {"format": {"type": "text"}}},
    **{"temperature": None, "tool_choice": "auto", "tools": [], "top_p": None, "truncation": "disabled"},
}
"""Fields of a response that repeat the request, and what they are if it has none."""
ITEM_OF_KIND = {
    "output_text": ("message", "msg"),
    "refusal": ("message", "msg"),
    "reasoning_text": ("reasoning", "rs"),
    "summary_text": ("reasoning", "rs"),
    "function": ("function_call", "fc"),
    "custom": ("custom_tool_call", "ctc"),
}
"""Of a kind of piece the type of its item, and how an id of the proxy's own begins."""
_EVENTS = {
    "output_text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "reasoning_text": ("response.reasoning_text", "text"),
    "summary_text": ("response.reasoning_summary_text", "text"),
    "function": ("response.function_call_arguments", "arguments"),
    "custom": ("response.custom_tool_call_input", "input"),
}
"""Of a kind of piece the name of its events, and the field that has all of its text in the last one."""


class WrittenResponse:
    """One response to the request that was `sent`. Whoever reads the LLM's answer fills in what no text is."""

    def __init__(self, sent: Mapping[str, Any]) -> None:
        self._sent = sent
        self.usage: JsonBody | None = None
        self.told: dict[int, JsonBody] = {}
        """The id of each item of the LLM's, its phase and its encrypted content, by its number."""
        self._sequence = 0
        self._output: list[JsonBody] = []
        self._item: int | None = None
        """The number of the open item."""
        self._part: tuple[str, int | None] | None = None
        """The kind of the open part, or call, and its number."""
        self._place: JsonBody = {}
        """What every event of it says of its place."""
        self._text: list[str] = []
        self._has_begun = False

    @staticmethod
    def stopped(choice: JsonBody) -> bool:
        """Whether the guard ends the answer."""
        flagged = (choice.get("guard") or {}).get("flagged")
        return bool(flagged) and choice.get("finish_reason") == "content_filter"

    def whole(self, judged: JsonBody, choice: JsonBody) -> JsonBody:
        """The whole response, after all pieces are written."""
        list(self._close_item(complete=not self.stopped(choice)))
        return self._response(judged, choice)

    def events(self, chunk: JsonBody) -> Iterator[JsonBody]:
        if not self._has_begun:
            self._has_begun = True
            for name in ("response.created", "response.in_progress"):
                yield self.event(name, response=self._response(chunk, None))
        for choice in chunk["choices"]:
            is_last = choice.get("finish_reason") is not None
            mark = {"guard": choice["guard"]} if "guard" in choice else {}
            for piece in pieces_of(choice.get("delta") or {}):
                for event in self.write(piece):
                    yield event | ({} if is_last else mark)
            if is_last:
                yield from self._close_item(complete=not self.stopped(choice))
                response = self._response(chunk, choice)
                yield self.event(f"response.{response['status']}", response=response) | mark

    def event(self, kind: str, **more: Any) -> JsonBody:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1} | more

    def write(self, piece: BlockPiece) -> Iterator[JsonBody]:
        """The events of a piece, which begins an item or a part, or goes on with one."""
        kind = piece.kind if piece.kind in ITEM_OF_KIND else "output_text"
        item = self._item if piece.number is None else piece.number // PARTS_OF_AN_ITEM
        if self._item is None or item != self._item:
            yield from self._close_item(complete=True)
            yield from self._begin_item(kind, item or 0, piece)
        if not piece.text:
            return
        if self._part is None or (piece.number is not None and self._part != (kind, piece.number)):
            yield from self._close_part()
            yield from self._begin_part(kind, piece.number)
        assert self._part
        self._text.append(piece.text)
        name, _ = _EVENTS[self._part[0]]
        yield self._event(f"{name}.delta", delta=piece.text)

    def _begin_item(self, kind: str, number: int, piece: BlockPiece) -> Iterator[JsonBody]:
        self._item = number
        of_type, begins = ITEM_OF_KIND[kind]
        told = self.told.get(number, {})
        item: JsonBody = {
            "id": told.get("id") or f"{begins}_{uuid.uuid4().hex}",
            "type": of_type,
            "status": "in_progress",
        }
        if kind in CALL_KINDS:
            called = piece.call.get(kind) or {}
            item |= {"call_id": piece.call.get("id"), "name": called.get("name"), _EVENTS[kind][1]: ""}
        elif of_type == "message":
            item |= {"role": "assistant", "content": []}
            item |= {"phase": told["phase"]} if "phase" in told else {}
        else:
            item |= {"summary": [], "content": []}
        self._output.append(item)
        yield self.event("response.output_item.added", output_index=len(self._output) - 1, item=_copy(item))
        if kind in CALL_KINDS:
            yield from self._begin_part(kind, piece.number)

    def _begin_part(self, kind: str, number: int | None) -> Iterator[JsonBody]:
        item = self._output[-1]
        self._part, self._text = (kind, number), []
        self._place = {"item_id": item["id"], "output_index": len(self._output) - 1}
        if kind in CALL_KINDS:
            return
        name, at = ("summary", "summary_index") if kind == "summary_text" else ("content", "content_index")
        part = _part(kind, "")
        self._place[at] = len(item[name])
        item[name].append(part)
        yield self._event(f"response.{_part_event(kind)}.added", part=dict(part))

    def _close_part(self) -> Iterator[JsonBody]:
        if self._part is None:
            return
        kind, _ = self._part
        item, text = self._output[-1], "".join(self._text)
        name, field = _EVENTS[kind]
        self._part = None
        yield self._event(f"{name}.done", **{field: text}, **({"name": item["name"]} if kind == "function" else {}))
        if kind in CALL_KINDS:
            item[field] = text
            return
        part = _part(kind, text)
        item["summary" if kind == "summary_text" else "content"][-1] = part
        yield self._event(f"response.{_part_event(kind)}.done", part=dict(part))

    def _close_item(self, *, complete: bool) -> Iterator[JsonBody]:
        """Ends the open item. What is not `complete` has no encrypted content."""
        if self._item is None:
            return
        yield from self._close_part()
        item = self._output[-1]
        item["status"] = "completed" if complete else "incomplete"
        encrypted = self.told.get(self._item, {}).get("encrypted_content")
        if complete and item["type"] == "reasoning" and encrypted and is_opaque(encrypted):
            item["encrypted_content"] = sealed(encrypted)
        self._item = None
        yield self.event("response.output_item.done", output_index=len(self._output) - 1, item=_copy(item))

    def _event(self, kind: str, **more: Any) -> JsonBody:
        """An event of the open part."""
        logprobs: JsonBody = {"logprobs": []} if kind.startswith("response.output_text.") else {}
        return self.event(kind, **self._place, **more, **logprobs)

    def _response(self, judged: JsonBody, choice: JsonBody | None) -> JsonBody:
        """The response as it is; `choice` is its end, if it has one."""
        reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(
            (choice or {}).get("finish_reason") or ""
        )
        status = "in_progress" if choice is None else "incomplete" if reason else "completed"
        head = {"id": judged["id"], "object": "response", "created_at": judged["created"], "model": judged["model"]}
        echoed = {name: self._sent.get(name, value) for name, value in _ECHOED.items()}
        own = {
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "previous_response_id": None,
            "output": [_copy(item) for item in self._output],
            "usage": self.usage if choice else None,
        }
        return head | echoed | own | {name: choice[name] for name in ("guard",) if choice and name in choice}


def _part(kind: str, text: str) -> JsonBody:
    return {"type": kind, "refusal" if kind == "refusal" else "text": text} | (
        {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    )


def _part_event(kind: str) -> str:
    return "reasoning_summary_part" if kind == "summary_text" else "content_part"


def _copy(item: JsonBody) -> JsonBody:
    return {name: list(value) if isinstance(value, list) else value for name, value in item.items()}
