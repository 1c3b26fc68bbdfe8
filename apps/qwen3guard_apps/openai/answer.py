"""What an LLM answers, whole or chunk by chunk, as far as the allow-list lets it through.

What carries no text is never fatal. Text that has no place here, such as a choice that nobody asked for, is an error.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from qwen3guard_contract.message_text import EMPTY

from qwen3guard_apps.openai import fields
from qwen3guard_apps.openai.choice import (
    ChatChoice,
    ChoiceReader,
    MessageKey,
    has_no_text,
    places_of,
    unreadable,
)
from qwen3guard_apps.openai.shapes import REMOVED, JsonText, ObjectOf, Shape, is_id

MOST_WORDS_OF_A_MODEL = 8
"""Such as accounts/fireworks/models/llama-v3p1-405b-instruct."""
MOST_CHOICES = 128
"""OpenAI's own limit, here of the calls of a message too. Each costs tens of microseconds, whatever it has."""
_STOPS = ("stop_reason", "matched_stop")
_OTHER = {"message": ("delta",), "delta": ("message",)}


class ChatAnswer:
    """The answer to one request; `head` is what it says of itself.

    `passed_fields` are fields of choices and messages that the operator wants judged and shown. `id_begins` begins
    an id of the proxy's own.
    """

    def __init__(
        self,
        asked: Mapping[str, Any],
        count: int,
        passed_fields: Collection[str] = (),
        id_begins: str = "chatcmpl-",
    ) -> None:
        self.head: dict[str, Any] = {
            "id": f"{id_begins}{uuid.uuid4().hex}",
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
        self.with_logprobs = bool(asked.get("logprobs"))
        self._choices = [ChoiceReader(_names(asked), self.with_logprobs) for _ in range(count)]
        extra: dict[str, Shape] = dict.fromkeys(self._passed_fields, JsonText())
        message = ObjectOf(extra | fields.MESSAGE_FIELDS)
        self._choice = ObjectOf(extra | fields.CHOICE_FIELDS | {"message": message, "delta": message})

    def read(self, body: Mapping[str, Any], key: MessageKey) -> list[ChatChoice]:
        """The choices of a whole answer, or of a chunk. Raises ApiError for text that cannot be read or placed."""
        self._read_head(body)
        choices = body.get("choices")
        if has_no_text(choices):
            return []
        if not isinstance(choices, list) or len(choices) > MOST_CHOICES:
            raise unreadable()
        return [entry for each in choices if not has_no_text(each) for entry in self._read_choice(each, key)]

    def usage(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The field `usage`, where there is one."""
        usage = body.get("usage")
        read = None if usage is None else fields.ANSWER_FIELDS["usage"].read(usage)
        return {"usage": read} if "usage" in body and read is not REMOVED else {}

    def rest(self, index: int) -> str:
        """What remains to be shown of a choice that has ended: U+FFFD, if it ended with half of a surrogate pair."""
        return self._choices[index].rest()

    def fields(self, index: int) -> list[str]:
        """The whole text of each field of a choice."""
        return self._choices[index].fields()

    def _read_head(self, body: Mapping[str, Any]) -> None:
        self.removed += sum(name not in fields.ANSWER_FIELDS and value not in EMPTY for name, value in body.items())
        for name, shape in fields.HEAD_FIELDS.items():
            value = body.get(name)
            if value is None or name in self._told or name == "object":
                continue
            read = shape.read(value)
            if name == "model" and read != self._model and not is_id(read, most_words=MOST_WORDS_OF_A_MODEL):
                continue
            if read is not REMOVED:
                self._told.add(name)
                self.head[name] = read

    def _read_choice(self, raw: Any, key: MessageKey) -> Iterable[ChatChoice]:
        if not isinstance(raw, dict):
            raise unreadable()
        index = raw.get("index")
        index = 0 if index is None else index
        calls = raw[key].get("tool_calls") if isinstance(raw.get(key), dict) else None
        if isinstance(calls, list) and len(calls) > MOST_CHOICES:
            raise unreadable()
        choice = self._choice.read({name: value for name, value in raw.items() if name not in _OTHER[key]})
        message = raw.get(key)
        for passed, given in ((choice, raw), (choice.get(key) or {}, message if isinstance(message, dict) else {})):
            self.removed += sum(name not in passed and value not in EMPTY for name, value in given.items())
        if not isinstance(choice.get(key), dict):
            if not has_no_text(raw.get(key)):
                raise unreadable()
            choice[key] = {} if key == "delta" else {"role": "assistant", "content": None}
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self._choices):
            if any(places_of(choice[key])):
                raise unreadable()
            return []
        choice["index"] = index
        for name in _STOPS:
            if isinstance(choice.get(name), str | list | dict) and choice[name] not in self._stops:
                del choice[name]
        raw_logprobs = choice.pop("logprobs", None)
        entry = ChatChoice(index, choice, key, [])
        self._choices[index].read(entry, raw_logprobs, self._passed_fields)
        if "logprobs" in raw:
            choice.setdefault("logprobs", None)
        return [entry]


def _names(asked: Mapping[str, Any]) -> set[str]:
    """The names of the functions and tools that a request declares."""
    declared = [*_listed(asked.get("functions")), *_listed(asked.get("tools"))]
    tools = [each for each in declared if isinstance(each, dict)]
    functions = [tool.get(kind) for tool in tools for kind in ("function", "custom")]
    named = [each.get("name") for each in (*tools, *functions) if isinstance(each, dict)]
    return {name for name in named if isinstance(name, str)}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
