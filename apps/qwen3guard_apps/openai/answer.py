"""What an LLM answers, whole or chunk by chunk, as far as the allow-list lets it through, and the text to judge in it.

What carries no text is never fatal. Text that has no place here, such as a choice that nobody asked for, is an error.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen3guard_client.surrogates import REPLACEMENT, joined
from qwen3guard_contract import message_text
from qwen3guard_contract.errors import InvalidMessages
from qwen3guard_contract.message_text import TEXT_FIELDS, TextPlace

from qwen3guard_apps.openai import fields
from qwen3guard_apps.openai.api_error import ApiError, upstream_failed
from qwen3guard_apps.openai.logprobs import OwnLogprobs
from qwen3guard_apps.openai.shapes import REMOVED, Fields, Json, Shape, is_id

MessageKey = Literal["message", "delta"]
CALLS = ("function_call", "tool_calls")
_STOPS = ("stop_reason", "matched_stop")
_EMPTY: tuple[Any, ...] = (None, "", [], {})


@dataclass
class Entry:
    """A choice of a chunk, or of a whole answer. `choice` may be shown, once its text is cleared."""

    index: int
    choice: dict[str, Any]
    key: MessageKey
    places: list[TextPlace]
    """Where its text stands, in the order in which it is judged."""

    @property
    def message(self) -> dict[str, Any]:
        return self.choice[self.key]  # type: ignore[no-any-return]

    @property
    def text(self) -> str:
        return message_text.joined(self.places)

    @property
    def finishes(self) -> bool:
        return self.choice.get("finish_reason") is not None

    def cut(self, characters: int) -> None:
        """Shortens the text to its first `characters`. What is judged as JSON stays or goes whole."""
        for holder, key, text, start in self.places:
            kept = max(0, characters - start)
            if kept < len(text):
                holder[key] = text[:kept] if isinstance(holder[key], str) else ""
        self.choice["logprobs"] = None


class Answer:
    """The answer to one request; `head` is what it says of itself.

    `passed_fields` are fields of choices and messages that the operator wants judged and shown.
    """

    def __init__(self, asked: Mapping[str, Any], count: int, passed_fields: Collection[str] = ()) -> None:
        self.head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": str(asked.get("model") or ""),
        }
        self._told: set[str] = set()
        """The fields of `head` that the LLM has told."""
        self.removed = 0
        """How many fields with a value were removed."""
        self._model = asked.get("model")
        self._stops = _listed(asked.get("stop"))
        self._passed_fields = tuple(passed_fields)
        self._choices = [_ChoiceReader(_names(asked), bool(asked.get("logprobs"))) for _ in range(count)]
        extra: dict[str, Shape] = dict.fromkeys(self._passed_fields, Json())
        message = Fields(extra | fields.MESSAGE)
        self._choice = Fields(extra | fields.CHOICE | {"message": message, "delta": message})

    def read(self, body: Mapping[str, Any], key: MessageKey) -> list[Entry]:
        """The choices of a whole answer, or of a chunk. Raises ApiError for text that cannot be read or placed."""
        self._read_head(body)
        choices = body.get("choices")
        if choices in _EMPTY:
            return []
        if not isinstance(choices, list):
            raise unreadable()
        return [entry for each in choices if each is not None for entry in self._read_choice(each, key)]

    def usage(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The field `usage`, where there is one."""
        usage = body.get("usage")
        read = None if usage is None else fields.ANSWER["usage"].read(usage)
        return {"usage": read} if "usage" in body and read is not REMOVED else {}

    def rest(self, index: int) -> str:
        """What remains to be shown of a choice that has ended: U+FFFD, if it ended with half of a surrogate pair."""
        return self._choices[index].rest()

    def _read_head(self, body: Mapping[str, Any]) -> None:
        self.removed += sum(name not in fields.ANSWER and value not in _EMPTY for name, value in body.items())
        for name, shape in fields.HEAD.items():
            value = body.get(name)
            if value is None or name in self._told or name == "object":
                continue
            read = shape.read(value)
            if name == "model" and read != self._model and not is_id(read):
                continue
            if read is not REMOVED:
                self._told.add(name)
                self.head[name] = read

    def _read_choice(self, raw: Any, key: MessageKey) -> Iterable[Entry]:
        if not isinstance(raw, dict):
            raise unreadable()
        index = raw.get("index")
        index = 0 if index is None else index
        choice = self._choice.read({name: value for name, value in raw.items() if name not in _OTHER[key]})
        self.removed += sum(name not in choice and value not in _EMPTY for name, value in raw.items())
        if not isinstance(choice.get(key), dict):
            if raw.get(key) not in _EMPTY:
                raise unreadable()
            choice[key] = {} if key == "delta" else {"role": "assistant", "content": None}
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self._choices):
            if any(_places(choice[key])):
                raise unreadable()
            return []
        choice["index"] = index
        for name in _STOPS:
            if isinstance(choice.get(name), str | list | dict) and choice[name] not in self._stops:
                del choice[name]
        raw_logprobs = choice.pop("logprobs", None)
        entry = Entry(index, choice, key, [])
        self._choices[index].read(entry, raw_logprobs, self._passed_fields)
        if "logprobs" in raw:
            choice.setdefault("logprobs", None)
        return [entry]


_OTHER = {"message": ("delta",), "delta": ("message",)}


class _ChoiceReader:
    """What one choice carries from chunk to chunk."""

    def __init__(self, names: Collection[str], logprobs: bool) -> None:
        self._names = names
        self._half = ""
        """Half of a surrogate pair with which the text so far ends."""
        self._logprobs = {field: OwnLogprobs() for field in TEXT_FIELDS} if logprobs else {}

    def read(self, entry: Entry, logprobs: Any, extra: tuple[str, ...]) -> None:
        """Fills in the entry's places, and those log-probabilities that may go out with it."""
        entry.places = self._judged(entry, extra)
        if self._half or any(_is_torn(place.text) for place in entry.places):
            self._mend(entry.places)
            if entry.key == "message" and self._half:
                entry.message["content"] = (entry.message.get("content") or "") + self.rest()
            entry.places = self._judged(entry, extra)
        raw = logprobs if isinstance(logprobs, dict) else {}
        own = {
            field: each.take(_string(entry.message.get(field)), raw.get(field))
            for field, each in self._logprobs.items()
        }
        if any(own.values()):
            entry.choice["logprobs"] = {field: taken or None for field, taken in own.items() if taken or field in raw}

    def rest(self) -> str:
        half, self._half = self._half, ""
        return REPLACEMENT if half else ""

    def _judged(self, entry: Entry, extra: tuple[str, ...]) -> list[TextPlace]:
        found = _places(entry.message)
        length = len(message_text.joined(found))
        holders = [(holder, key) for holder in (entry.message, entry.choice) for key in extra]
        for holder, key in [*self._unknown_names(entry.message), *holders]:
            text = holder.get(key)
            if text not in _EMPTY:
                text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
                found.append(TextPlace(holder, key, text, length))
                length += len(text)
        return found

    def _unknown_names(self, message: dict[str, Any]) -> Iterable[tuple[dict[str, Any], str]]:
        """Names and ids of calls that the LLM made up: they are text as any other."""
        calls = [call for call in message.get("tool_calls") or () if isinstance(call, dict)]
        for call in calls:
            if not is_id(call.get("id")):
                yield call, "id"
        functions = [message.get("function_call")]
        functions += [call.get(kind) for call in calls for kind in ("function", "custom")]
        for function in functions:
            if isinstance(function, dict) and function.get("name") not in self._names:
                yield function, "name"

    def _mend(self, places: list[TextPlace]) -> None:
        mended: dict[tuple[int, str], str] = {}
        for holder, key, text, start in places:
            if not isinstance(holder[key], str):
                holder[key] = json.loads(joined("", text)[0])
                continue
            if (start, text) not in mended:
                mended[start, text], self._half = joined(self._half, text)
            holder[key] = mended[start, text]


def _places(message: dict[str, Any]) -> list[TextPlace]:
    try:
        return list(message_text.places(message, "The answer"))
    except InvalidMessages:
        raise unreadable() from None


def _names(asked: Mapping[str, Any]) -> set[str]:
    """The names of the functions and tools that a request declares."""
    declared = [*_listed(asked.get("functions")), *_listed(asked.get("tools"))]
    tools = [each for each in declared if isinstance(each, dict)]
    functions = [tool.get(kind) for tool in tools for kind in ("function", "custom")]
    named = [each.get("name") for each in (*tools, *functions) if isinstance(each, dict)]
    return {name for name in named if isinstance(name, str)}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _is_torn(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def unreadable() -> ApiError:
    return upstream_failed("The LLM's answer is not what OpenAI's API describes.", "upstream_unreadable")
