"""OpenAI's Responses: the route, and what an LLM answers on it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from qwen3guard_apps.doors.blocks import number_of, pieces_of, text_in
from qwen3guard_apps.doors.door import Door, DoorAnswer, DoorEvent, JsonBody
from qwen3guard_apps.doors.responses_request import PHASES, RESPONSES_REQUEST_FIELDS, read_responses_request
from qwen3guard_apps.doors.responses_written import (
    ITEM_OF_KIND,
    PARTS_OF_AN_ITEM,
    RESPONSES_USAGE_FIELDS,
    WrittenResponse,
)
from qwen3guard_apps.openai.api_error import ApiError
from qwen3guard_apps.openai.choice import has_no_text, unreadable
from qwen3guard_apps.openai.request import GuardedRequest
from qwen3guard_apps.openai.shapes import REMOVED, ObjectOf, is_id

_USAGE = ObjectOf(RESPONSES_USAGE_FIELDS)
_MOST_PARTS = PARTS_OF_AN_ITEM // 2
"""The parts of a reasoning's content have numbers from here on, those of its summary and of a message below it."""
_FIELDS = {
    "output_text": ("content", "text"),
    "refusal": ("refusal", "refusal"),
    "reasoning_text": ("reasoning_content", "text"),
    "summary_text": ("reasoning", "text"),
}
"""Of a type of part the field of a chat message in which it is judged, and its own field that has the text."""
_EVENTS = {
    "response.output_text": ("output_text", "content_index", "text"),
    "response.refusal": ("refusal", "content_index", "refusal"),
    "response.reasoning_text": ("reasoning_text", "content_index", "text"),
    "response.reasoning_summary_text": ("summary_text", "summary_index", "text"),
    "response.function_call_arguments": ("function", "", "arguments"),
    "response.custom_tool_call_input": ("custom", "", "input"),
}
"""Of events that end in `.delta` or `.done`: whose text it is, the field with the part's number, and, in the one that
ends in `.done`, the field with all of the text."""
_CALLS = {"function_call": ("function", "arguments"), "custom_tool_call": ("custom", "input")}
_END_EVENTS = ("response.completed", "response.incomplete")
_INCOMPLETE = {"max_output_tokens": "length", "max_tokens": "length", "content_filter": "content_filter"}


class ResponsesDoor(Door):
    path = "responses"
    summary = "A response of OpenAI's API, streamed or whole."
    fields = RESPONSES_REQUEST_FIELDS

    def read(self, asked: JsonBody, passed_fields: Collection[str]) -> GuardedRequest:
        return read_responses_request(asked, passed_fields)

    def answer(self, read: GuardedRequest) -> DoorAnswer:
        return _ResponsesAnswer(read.sent)


class _ResponsesAnswer(DoorAnswer):
    id_begins = "resp_"

    def __init__(self, sent: Mapping[str, Any]) -> None:
        super().__init__()
        self._sent = sent
        self._written = WrittenResponse(sent)
        self._texts: dict[int, list[str]] = {}
        """What the LLM has written of each part and call, by its number."""
        self._lengths: dict[int, int] = {}
        """How many characters that is."""
        self._numbers: dict[str, int] = {}
        """Of items by their ids, where an LLM gives them no numbers."""
        self._types: dict[int, str] = {}
        """Of which type each item is that has begun, by its number."""
        self._at = 0
        """The number that it writes."""
        self._has_begun = False

    @property
    def asked(self) -> Mapping[str, Any]:
        return {"model": self._sent.get("model"), "tools": self._sent.get("tools")}

    def read_whole(self, body: Any) -> JsonBody:
        if not isinstance(body, dict) or not isinstance(body.get("output"), list):
            raise unreadable()
        message: JsonBody = {"role": "assistant"}
        for delta in self._items(body["output"]):
            for name, pieces in delta.items():
                message.setdefault(name, []).extend(pieces)
        choice = {"index": 0, "message": message} | self._end(body)
        return self._head(body) | {"choices": [choice]}

    def read_event(self, body: JsonBody) -> Iterable[JsonBody]:
        kind = body.get("type")
        name, _, way = kind.rpartition(".") if isinstance(kind, str) else ("", "", "")
        if way in ("delta", "done") and name in _EVENTS:
            return self._gone_on(body, *_EVENTS[name], whole=way == "done")
        response = body.get("response")
        if kind in _END_EVENTS:
            if not isinstance(response, dict):
                raise unreadable()
            self.ended = True
            output = response.get("output")
            late = [_delta(each) for each in self._items(output if isinstance(output, list) else [])]
            return [*late, self._head(response) | _delta({}, **self._end(response))]
        if kind in ("response.created", "response.in_progress", "response.queued"):
            begins, self._has_begun = not self._has_begun, True
            return [self._head(response if isinstance(response, dict) else {}) | _delta({"role": "assistant"})][:begins]
        if kind in ("response.output_item.added", "response.output_item.done"):
            return [_delta(each) for each in self._item(self._number_in(body), body.get("item"))]
        if kind not in ("response.content_part.added", "response.content_part.done"):
            self.removed += 1
        return []

    def failure(self, body: JsonBody) -> Any:
        response = body.get("response")
        told = response if body.get("type") == "response.failed" and isinstance(response, dict) else body
        if body.get("type") == "response.failed" or body.get("status") in ("failed", "cancelled"):
            return {"error": told.get("error") or {"message": "The LLM failed, and says no more."}}
        return None

    def whole(self, judged: JsonBody) -> JsonBody:
        choice = judged["choices"][0]
        stopped = self._written.stopped(choice)
        for piece in pieces_of(choice["message"]):
            if piece.text or not stopped:
                list(self._written.write(piece))
        return self._written.whole(judged, choice)

    def events(self, chunk: JsonBody) -> Iterator[DoorEvent]:
        for event in self._written.events(chunk):
            yield event["type"], event

    def error(self, error: ApiError) -> DoorEvent:
        body = error.body()
        inner = body.get("error")
        told = inner if isinstance(inner, dict) else {}
        shape = {"code": told.get("code"), "message": told.get("message"), "param": None}
        return "error", body | self._written.event("error", **shape)  # the SDK raises where there is a field `error`

    def _head(self, response: JsonBody) -> JsonBody:
        return {"id": response.get("id"), "created": response.get("created_at"), "model": response.get("model")}

    def _end(self, response: JsonBody) -> JsonBody:
        usage = _USAGE.read(response.get("usage"))
        if usage is not REMOVED:
            self._written.usage = usage
        details = response.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        if response.get("status") == "incomplete":
            return {"finish_reason": _INCOMPLETE.get(reason if isinstance(reason, str) else "", "length")}
        if response.get("status") not in ("completed", None):  # it is to be fetched later, where nobody judges it
            raise unreadable()
        return {"finish_reason": "stop"}

    def _items(self, output: list[Any]) -> Iterator[JsonBody]:
        for number, item in enumerate(output):
            yield from self._item(number_of(number), item)

    def _number_in(self, event: JsonBody) -> int:
        """The number of its item. The server of llama.cpp names the item alone, a call by its `call_id`."""
        if event.get("output_index") is not None:
            return number_of(event["output_index"])
        item = event.get("item")
        told = [event.get("item_id"), *([item.get("id"), item.get("call_id")] if isinstance(item, dict) else [])]
        name = next((each for each in told if isinstance(each, str)), None)
        if name is None:
            raise unreadable()
        return number_of(self._numbers.setdefault(name, len(self._numbers)))

    def _item(self, number: int, item: Any) -> Iterator[JsonBody]:
        """What is new in an item, which may come several times and grow, as pieces of a message."""
        kind = item.get("type") if isinstance(item, dict) else None
        if not isinstance(kind, str):
            raise unreadable()
        first = number * PARTS_OF_AN_ITEM
        told = self._written.told.setdefault(number, {})
        told |= {name: item[name] for name in ("id",) if is_id(item.get(name))}
        told |= {"phase": item["phase"]} if item.get("phase") in PHASES else {}
        if isinstance(item.get("encrypted_content"), str):
            told["encrypted_content"] = item["encrypted_content"]
        if kind in _CALLS:
            name, field = _CALLS[kind]
            if first not in self._texts:
                yield from self._piece(first, name, "", {"id": item.get("call_id"), "name": item.get("name")})
            yield from self._all(first, name, text_in(item.get(field)))
            return
        if kind not in ("message", "reasoning"):
            raise unreadable()
        begin = first + (_MOST_PARTS if kind == "reasoning" else 0)
        found = [(begin + at, part) for at, part in enumerate(_parts(item, "content"))]
        if kind == "reasoning":
            found = [*((first + at, part) for at, part in enumerate(_parts(item, "summary"))), *found]
        if self._at < first or not self._texts:
            yield from self._piece(first, "output_text" if kind == "message" else "summary_text", "")
        for at, part in found:
            kind_of_part = part.get("type")
            if not isinstance(kind_of_part, str) or kind_of_part not in _FIELDS:
                raise unreadable()
            yield from self._all(at, kind_of_part, text_in(part.get(_FIELDS[kind_of_part][1])))

    def _gone_on(self, body: JsonBody, kind: str, part: str, field: str, *, whole: bool) -> Iterable[JsonBody]:
        number = self._number_in(body) * PARTS_OF_AN_ITEM
        if part:
            number += number_of(body.get(part) or 0, _MOST_PARTS) + (_MOST_PARTS if kind == "reasoning_text" else 0)
        elif number not in self._texts:
            raise unreadable()  # a call whose item was not told
        text = text_in(body.get(field if whole else "delta"))
        pieces = self._all(number, kind, text) if whole else self._piece(number, kind, text)
        return [_delta(each) for each in pieces]

    def _all(self, number: int, kind: str, text: str) -> Iterator[JsonBody]:
        """The rest of a text of which all is told. Another text than what was written is not shown."""
        length = self._lengths.get(number, 0)
        if len(text) > length and text.startswith("".join(self._texts.get(number, ()))):
            yield from self._piece(number, kind, text[length:])

    def _piece(self, number: int, kind: str, text: str, called: JsonBody | None = None) -> Iterator[JsonBody]:
        """Raises ApiError for one that comes back to an earlier part, for parts follow one another, and for one that
        its item cannot have."""
        of_type, _ = ITEM_OF_KIND[kind]
        if number < self._at or self._types.setdefault(number // PARTS_OF_AN_ITEM, of_type) != of_type:
            raise unreadable()
        self._at = number
        self._texts.setdefault(number, []).append(text)
        self._lengths[number] = self._lengths.get(number, 0) + len(text)
        if kind in _FIELDS:
            field, key = _FIELDS[kind]
            yield {field: [{"type": kind, "index": number, key: text}]}
            return
        told = {} if called is None else {"name": called["name"]}
        call = {"index": number, kind: told | {"arguments" if kind == "function" else "input": text}}
        yield {"tool_calls": [call | ({} if called is None else {"id": called["id"], "type": kind})]}


def _parts(item: JsonBody, name: str) -> list[JsonBody]:
    """The parts in a field of an item. Raises ApiError for what is none."""
    value = item.get(name)
    if has_no_text(value):
        return []
    if not isinstance(value, list) or len(value) > _MOST_PARTS:
        raise unreadable()
    if not all(isinstance(part, dict) for part in value):
        raise unreadable()
    return value


def _delta(delta: JsonBody, **more: Any) -> JsonBody:
    return {"choices": [{"index": 0, "delta": delta} | more]}
