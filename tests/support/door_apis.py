"""What the LLMs behind the proxy's doors say, and what a client reads there: the same things in each API's form."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from qwen3guard_apps.doors.anthropic import MessagesDoor
from qwen3guard_apps.doors.completions import CompletionsDoor
from qwen3guard_apps.doors.door import ChatDoor, Door
from qwen3guard_apps.doors.responses import ResponsesDoor

from support.raw_llm import chunk, completion

JsonObject = dict[str, Any]
TOOL = "cook"


@dataclass(frozen=True)
class Said:
    """What an LLM writes: texts in pieces. `arguments` are those of a call of TOOL."""

    text: Sequence[str] = ()
    reasoning: Sequence[str] = ()
    arguments: Sequence[str] = ()


class Shown(NamedTuple):
    """What a client reads. `ended` is why the answer ended: stop, length, tool_calls or content_filter."""

    text: str
    reasoning: str
    arguments: str
    ended: str | None
    guard: Any


class Api(ABC):
    door: ClassVar[Door]
    only_text: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.door.path

    @abstractmethod
    def asked(self, prompt: str, *, stream: bool) -> JsonObject: ...

    @abstractmethod
    def whole(self, said: Said) -> JsonObject: ...

    @abstractmethod
    def events(self, said: Said) -> list[JsonObject]: ...

    @abstractmethod
    def read_whole(self, body: JsonObject) -> Shown: ...

    @abstractmethod
    def read_events(self, events: Iterable[JsonObject]) -> Shown: ...

    def stream(self, said: Said) -> bytes:
        return events_of(self.events(said))


def events_of(events: Iterable[Any]) -> bytes:
    """As servers send them: with the event's name where it has one, and at the end what OpenAI's have."""
    written = []
    for event in events:
        name = f"event: {event['type']}\n" if isinstance(event, dict) and isinstance(event.get("type"), str) else ""
        data = event if isinstance(event, str) else json.dumps(event)
        written.append(f"{name}data: {data}\n\n")
    return "".join(written).encode(errors="replace")


class Chat(Api):
    door = ChatDoor()

    def asked(self, prompt: str, *, stream: bool) -> JsonObject:
        tools = [{"type": "function", "function": {"name": TOOL}}]
        return {"model": "fake", "messages": [{"role": "user", "content": prompt}], "stream": stream, "tools": tools}

    def whole(self, said: Said) -> JsonObject:
        message: JsonObject = {"role": "assistant", "content": "".join(said.text)}
        if said.reasoning:
            message["reasoning_content"] = "".join(said.reasoning)
        if said.arguments:
            function = {"name": TOOL, "arguments": "".join(said.arguments)}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        return completion(message)

    def events(self, said: Said) -> list[JsonObject]:
        found = [chunk({"role": "assistant"})]
        found += [chunk({"reasoning_content": each}) for each in said.reasoning]
        found += [chunk({"content": each}) for each in said.text]
        for number, each in enumerate(said.arguments):
            told = {"id": "call_1", "type": "function"} if number == 0 else {}
            function = {"arguments": each} | ({"name": TOOL} if number == 0 else {})
            found.append(chunk({"tool_calls": [{"index": 0, "function": function} | told]}))
        return [*found, chunk({}, "stop")]

    def read_whole(self, body: JsonObject) -> Shown:
        return self.read_events([{"choices": [body["choices"][0] | {"delta": body["choices"][0]["message"]}]}])

    def read_events(self, events: Iterable[JsonObject]) -> Shown:
        text = reasoning = arguments = ""
        ended = guard = None
        for choice in (choice for event in events for choice in event.get("choices", ())):
            delta = choice["delta"]
            text += delta.get("content") or ""
            reasoning += delta.get("reasoning_content") or ""
            arguments += "".join(call["function"]["arguments"] for call in delta.get("tool_calls") or ())
            ended, guard = choice.get("finish_reason") or ended, choice.get("guard") or guard
        return Shown(text, reasoning, arguments, ended, guard)


class Completions(Api):
    door = CompletionsDoor()
    only_text = True

    def asked(self, prompt: str, *, stream: bool) -> JsonObject:
        return {"model": "fake", "prompt": prompt, "stream": stream}

    def whole(self, said: Said) -> JsonObject:
        return self._body([{"index": 0, "text": "".join(said.text), "logprobs": None, "finish_reason": "stop"}])

    def events(self, said: Said) -> list[JsonObject]:
        found = [
            self._body([{"index": 0, "text": each, "logprobs": None, "finish_reason": None}]) for each in said.text
        ]
        return [*found, self._body([{"index": 0, "text": "", "finish_reason": "stop"}])]

    @staticmethod
    def _body(choices: list[JsonObject]) -> JsonObject:
        return {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "fake", "choices": choices}

    def read_whole(self, body: JsonObject) -> Shown:
        return self.read_events([body])

    def read_events(self, events: Iterable[JsonObject]) -> Shown:
        text, ended, guard = "", None, None
        for event in events:
            for choice in event.get("choices", ()):
                assert event["object"] == "text_completion"
                text += choice["text"]
                ended, guard = choice.get("finish_reason") or ended, choice.get("guard") or guard
        return Shown(text, "", "", ended, guard)


class Messages(Api):
    door = MessagesDoor()
    signature = "c2lnbmF0dXJl"
    _ENDS: ClassVar = {
        "end_turn": "stop",
        "max_tokens": "length",
        "tool_use": "tool_calls",
        "refusal": "content_filter",
    }

    def asked(self, prompt: str, *, stream: bool) -> JsonObject:
        messages = [{"role": "user", "content": prompt}]
        return {"model": "fake", "max_tokens": 99, "messages": messages, "stream": stream, "tools": [{"name": TOOL}]}

    def whole(self, said: Said) -> JsonObject:
        content: list[JsonObject] = []
        if said.reasoning:
            content.append({"type": "thinking", "thinking": "".join(said.reasoning), "signature": self.signature})
        if said.text:
            content.append({"type": "text", "text": "".join(said.text), "citations": None})
        if said.arguments:
            called = json.loads("".join(said.arguments))
            content.append({"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": called})
        return self._message(content, "end_turn")

    def events(self, said: Said) -> list[JsonObject]:
        found: list[JsonObject] = [{"type": "message_start", "message": self._message([], None)}, {"type": "ping"}]
        at = 0

        def block(begin: JsonObject, kind: str, field: str, pieces: Sequence[str], *last: JsonObject) -> None:
            nonlocal at
            deltas = [{"type": kind, field: each} for each in pieces] + list(last)
            found.append({"type": "content_block_start", "index": at, "content_block": begin})
            found.extend({"type": "content_block_delta", "index": at, "delta": each} for each in deltas)
            found.append({"type": "content_block_stop", "index": at})
            at += 1

        if said.reasoning:
            begin: JsonObject = {"type": "thinking", "thinking": "", "signature": ""}
            signed = {"type": "signature_delta", "signature": self.signature}
            block(begin, "thinking_delta", "thinking", said.reasoning, signed)
        if said.text:
            block({"type": "text", "text": ""}, "text_delta", "text", said.text)
        if said.arguments:
            begin = {"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": {}}
            block(begin, "input_json_delta", "partial_json", said.arguments)
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        return [
            *found,
            {"type": "message_delta", "delta": end, "usage": {"output_tokens": 5}},
            {"type": "message_stop"},
        ]

    @staticmethod
    def _message(content: list[JsonObject], reason: str | None) -> JsonObject:
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "fake", "content": content}
        usage = {"input_tokens": 3, "output_tokens": 1}
        return head | {"stop_reason": reason, "stop_sequence": None, "usage": usage}

    def read_whole(self, body: JsonObject) -> Shown:
        def of(kind: str, field: str) -> list[Any]:
            return [block[field] for block in body["content"] if block["type"] == kind]

        arguments = "".join(json.dumps(each) for each in of("tool_use", "input"))
        ended = self._ENDS[body["stop_reason"]]
        return Shown("".join(of("text", "text")), "".join(of("thinking", "thinking")), arguments, ended, body["guard"])

    def read_events(self, events: Iterable[JsonObject]) -> Shown:
        text = reasoning = arguments = ""
        ended = guard = None
        open_block = None
        for event in events:
            kind, delta = event["type"], event.get("delta") or {}
            if kind == "content_block_start":
                assert open_block is None
                open_block = event["index"]
            elif kind == "content_block_stop":
                assert open_block == event["index"]
                open_block = None
            elif kind == "content_block_delta":
                assert open_block == event["index"]
                text += delta.get("text", "")
                reasoning += delta.get("thinking", "")
                arguments += delta.get("partial_json", "")
            elif kind == "message_delta":
                ended, guard = self._ENDS[delta["stop_reason"]], event["guard"]
        return Shown(text, reasoning, arguments, ended, guard)


class Responses(Api):
    door = ResponsesDoor()

    def asked(self, prompt: str, *, stream: bool) -> JsonObject:
        return {"model": "fake", "input": prompt, "stream": stream, "tools": [{"type": "function", "name": TOOL}]}

    def whole(self, said: Said) -> JsonObject:
        output: list[JsonObject] = []
        if said.reasoning:
            summary = [{"type": "summary_text", "text": "".join(said.reasoning)}]
            output.append({"id": "rs_1", "type": "reasoning", "summary": summary, "encrypted_content": "gAAAA1"})
        if said.text:
            part = {"type": "output_text", "text": "".join(said.text), "annotations": []}
            output.append({"id": "msg_1", "type": "message", "role": "assistant", "content": [part]})
        if said.arguments:
            call = {"id": "fc_1", "call_id": "call_1", "name": TOOL, "arguments": "".join(said.arguments)}
            output.append({"type": "function_call"} | call)
        return self._response(output, "completed")

    def events(self, said: Said) -> list[JsonObject]:
        whole = self.whole(said)
        found: list[JsonObject] = [{"type": "response.created", "response": self._response([], "in_progress")}]
        for at, item in enumerate(whole["output"]):
            where = {"output_index": at, "item_id": item["id"]}
            empty = item | {"content": []} if item["type"] == "message" else item | {"arguments": ""}
            empty = item | {"summary": []} if item["type"] == "reasoning" else empty
            found.append({"type": "response.output_item.added", "output_index": at, "item": empty})
            kind = {"message": "output_text", "reasoning": "reasoning_summary_text"}.get(item["type"])
            name = f"response.{kind or 'function_call_arguments'}"
            place = {"summary_index": 0} if item["type"] == "reasoning" else {"content_index": 0} if kind else {}
            field = "text" if kind else "arguments"
            pieces = {"message": said.text, "reasoning": said.reasoning}.get(item["type"], said.arguments)
            found += [{"type": f"{name}.delta", "delta": each} | where | place for each in pieces]
            found.append({"type": f"{name}.done", field: "".join(pieces)} | where | place)
            found.append({"type": "response.output_item.done", "output_index": at, "item": item})
        return [*found, {"type": "response.completed", "response": whole}]

    @staticmethod
    def _response(output: list[JsonObject], status: str) -> JsonObject:
        head = {"id": "resp_1", "object": "response", "created_at": 7, "model": "fake", "error": None}
        usage = {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}
        return head | {"status": status, "output": output, "usage": usage, "incomplete_details": None}

    def read_whole(self, body: JsonObject) -> Shown:
        text = reasoning = arguments = ""
        for item in body["output"]:
            text += "".join(part.get("text", "") for part in item.get("content", ()) if item["type"] == "message")
            reasoning += "".join(part["text"] for part in item.get("summary", ()))
            arguments += item.get("arguments", "")
        ended = "stop" if body["status"] == "completed" else body["incomplete_details"]["reason"]
        return Shown(text, reasoning, arguments, ended, body["guard"])

    def read_events(self, events: Iterable[JsonObject]) -> Shown:
        shown = {"output_text": "", "reasoning_summary_text": "", "function_call_arguments": ""}
        last: JsonObject = {}
        for number, event in enumerate(events):
            assert event["sequence_number"] == number
            name, _, way = event["type"].removeprefix("response.").rpartition(".")
            if way == "delta" and name in shown:
                shown[name] += event["delta"]
            if event["type"] in ("response.completed", "response.incomplete"):
                last = event["response"]
        if not last:
            text, reasoning, arguments = shown.values()
            return Shown(text, reasoning, arguments, None, None)
        whole = self.read_whole(last)
        assert tuple(shown.values()) == whole[:3]
        return whole


APIS: tuple[Api, ...] = (Chat(), Completions(), Messages(), Responses())
