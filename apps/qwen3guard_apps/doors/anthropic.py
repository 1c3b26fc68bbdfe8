"""Anthropic's messages: the route, its errors, and what an LLM answers on it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from qwen3guard_apps.doors.anthropic_request import MESSAGES_REQUEST_FIELDS, read_messages_request
from qwen3guard_apps.doors.anthropic_written import END_REASONS, MESSAGES_USAGE_FIELDS, WrittenMessage
from qwen3guard_apps.doors.blocks import number_of, pieces_of, text_in
from qwen3guard_apps.doors.door import Door, DoorAnswer, DoorEvent, JsonBody
from qwen3guard_apps.openai.api_error import ApiError
from qwen3guard_apps.openai.choice import has_no_text, unreadable
from qwen3guard_apps.openai.request import GuardedRequest
from qwen3guard_apps.openai.shapes import REMOVED, ObjectOf

_USAGE = ObjectOf(MESSAGES_USAGE_FIELDS)
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "not_found_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_BLOCKS = {
    "text": {"text"},
    "thinking": {"thinking", "signature"},
    "redacted_thinking": {"data"},
    "tool_use": {"id", "name", "input"},
}
"""The blocks that are read, and the fields of each that are."""
_DELTAS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "input_json_delta": ("tool_use", "partial_json"),
}
"""Of a delta its block's kind, and the field that has its text."""


class MessagesDoor(Door):
    path = "messages"
    summary = "A message of Anthropic's API, streamed or whole."
    fields = MESSAGES_REQUEST_FIELDS

    def read(self, asked: JsonBody, passed_fields: Collection[str]) -> GuardedRequest:
        return read_messages_request(asked, passed_fields)

    def answer(self, read: GuardedRequest) -> DoorAnswer:
        return _MessagesAnswer(read.sent)

    def error(self, error: ApiError) -> JsonBody:
        return _shaped(error)


def _shaped(error: ApiError) -> JsonBody:
    body = error.body()
    inner = body.get("error")
    told = inner if isinstance(inner, dict) else {"message": str(error)}
    if told.get("type") not in (*_ERRORS.values(), "api_error", "billing_error"):
        told = told | {"type": _ERRORS.get(error.status, "api_error")}
    return body | {"type": "error", "error": {name: value for name, value in told.items() if name != "param"}}


class _MessagesAnswer(DoorAnswer):
    id_begins = "msg_"

    def __init__(self, sent: Mapping[str, Any]) -> None:
        super().__init__()
        self._sent = sent
        self._at = -1
        """The number of the block that the LLM writes."""
        self._kind = ""
        self._written = WrittenMessage()

    @property
    def asked(self) -> Mapping[str, Any]:
        sent = self._sent
        return {"model": sent.get("model"), "tools": sent.get("tools"), "stop": sent.get("stop_sequences")}

    def read_whole(self, body: Any) -> JsonBody:
        if not isinstance(body, dict) or not isinstance(body.get("content"), list):
            raise unreadable()
        message: JsonBody = {"role": "assistant"}
        for number, block in enumerate(body["content"]):
            for name, pieces in self._begun(number, block).items():
                message.setdefault(name, []).extend(pieces)
        self._read_usage(body.get("usage"))
        choice = {"index": 0, "message": message} | self._end(body)
        return {"id": body.get("id"), "model": body.get("model"), "choices": [choice]}

    def read_event(self, body: JsonBody) -> Iterable[JsonBody]:
        match body.get("type"):
            case "message_start":
                told = body.get("message")
                message = told if isinstance(told, dict) else {}
                self._read_usage(message.get("usage"))
                if not has_no_text(message.get("content")):
                    raise unreadable()
                head = {"id": message.get("id"), "model": message.get("model")}
                return [head | _delta({"role": "assistant"})]
            case "content_block_start":
                return [_delta(self._begun(number_of(body.get("index")), body.get("content_block")))]
            case "content_block_delta":
                return self._gone_on(number_of(body.get("index")), body.get("delta"))
            case "message_delta":
                self._read_usage(body.get("usage"))
                told = body.get("delta")
                end = self._end(told) if isinstance(told, dict) else {}
                return [_delta({}, **end)] if end.get("finish_reason") else []
            case "message_stop":
                self.ended = True
            case "ping" | "content_block_stop":
                pass
            case _:
                self.removed += 1
        return []

    def whole(self, judged: JsonBody) -> JsonBody:
        choice = judged["choices"][0]
        stopped = self._written.stopped(choice)
        for piece in pieces_of(choice["message"]):
            if piece.text or not stopped:
                self._written.write(piece)
        return self._written.message(judged, choice)

    def events(self, chunk: JsonBody) -> Iterator[DoorEvent]:
        for event in self._written.events(chunk):
            yield event["type"], event

    def error(self, error: ApiError) -> DoorEvent:
        return "error", _shaped(error)

    def _begun(self, number: int, block: Any) -> dict[str, list[JsonBody]]:
        """The beginning of a block, or all of it, as fields of a message. Raises ApiError for a block of another kind,
        and for one that is not the next: blocks follow one another."""
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str) or kind not in _BLOCKS or number <= self._at:
            raise unreadable()
        self._at, self._kind = number, kind
        read = {"type", *_BLOCKS[kind]}
        self.removed += sum(name not in read and not has_no_text(value) for name, value in block.items())
        if kind == "tool_use":
            return self._called(number, block.get("input") or "", {"id": block.get("id"), "name": block.get("name")})
        if kind == "text":
            return _part("content", number, "text", text_in(block.get("text")))
        self._sign(number, block.get("data" if kind == "redacted_thinking" else "signature"))
        if kind == "redacted_thinking":
            self._written.redacted.add(number)
        text = text_in(block.get("thinking")) if kind == "thinking" else ""
        return _part("reasoning_content", number, "thinking", text)

    def _gone_on(self, number: int, delta: Any) -> Iterable[JsonBody]:
        if not isinstance(delta, dict):
            raise unreadable()
        if number == self._at and delta.get("type") == "signature_delta" and self._kind == "thinking":
            self._sign(number, delta.get("signature"))
            return []
        kind, field = _DELTAS.get(str(delta.get("type")), ("", ""))
        if not kind:
            self.removed += 1
            return []
        text = text_in(delta.get(field))
        if number != self._at or kind != self._kind:
            raise unreadable()
        if kind == "tool_use":
            return [_delta(self._called(number, text, {}))]
        return [_delta(_part("content" if kind == "text" else "reasoning_content", number, kind, text))]

    def _called(self, number: int, arguments: Any, told: JsonBody) -> dict[str, list[JsonBody]]:
        function = ({"name": told["name"]} if told else {}) | {"arguments": arguments}
        call = {"index": number, "function": function}
        return {"tool_calls": [call | ({"id": told["id"], "type": "function"} if told else {})]}

    def _sign(self, number: int, signature: Any) -> None:
        if isinstance(signature, str) and signature:
            self._written.opaque.setdefault(number, []).append(signature)

    def _end(self, told: JsonBody) -> JsonBody:
        reason, sequence = told.get("stop_reason"), told.get("stop_sequence")
        if has_no_text(reason):
            return {}
        self._written.reason = reason if isinstance(reason, str) and reason in END_REASONS else "end_turn"
        return {"finish_reason": END_REASONS[self._written.reason], "stop_reason": sequence}

    def _read_usage(self, usage: Any) -> None:
        read = _USAGE.read(usage)
        if read is not REMOVED:
            self._written.usage |= {name: value for name, value in read.items() if value is not None}


def _part(field: str, number: int, kind: str, text: str) -> dict[str, list[JsonBody]]:
    return {field: [{"type": kind, "index": number, kind: text}]}


def _delta(delta: JsonBody, **more: Any) -> JsonBody:
    return {"choices": [{"index": 0, "delta": delta} | more]}
