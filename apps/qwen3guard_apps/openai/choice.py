"""One choice of an LLM's answer, whole or piece by piece: what of it may be shown, and the text to judge in it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from qwen3guard_client.surrogates import REPLACEMENT, join_surrogates
from qwen3guard_contract import message_text
from qwen3guard_contract.errors import InvalidMessages
from qwen3guard_contract.message_text import EMPTY, TEXT_FIELDS, TextPlace

from qwen3guard_apps.openai.api_error import ApiError, upstream_failed
from qwen3guard_apps.openai.escapes import Escapes
from qwen3guard_apps.openai.interleaved import Interleaved, owners_of
from qwen3guard_apps.openai.logprobs import OwnLogprobs
from qwen3guard_apps.openai.shapes import is_id

MessageKey = Literal["message", "delta"]
CALLS = ("function_call", "tool_calls")


def has_no_text(value: Any) -> bool:
    """Whether it is empty, or a number or a truth value."""
    return value in EMPTY or isinstance(value, bool | int | float)


@dataclass
class ChatChoice:
    """A choice of a chunk, or of a whole answer. `choice` may be shown, once its text is cleared."""

    index: int
    choice: dict[str, Any]
    key: MessageKey
    places: list[TextPlace]
    """Where its text stands, in the order in which it is judged."""
    again: str | None = ""
    """What is judged before its text once more, and is not shown: the end of a field that it goes on with. None if its
    text waits for the end of the answer (`ChoiceReader.fields`)."""

    @property
    def message(self) -> dict[str, Any]:
        return self.choice[self.key]  # type: ignore[no-any-return]

    @property
    def text(self) -> str:
        return message_text.text_of_places(self.places)

    @property
    def finishes(self) -> bool:
        return self.choice.get("finish_reason") is not None

    def cut(self, characters: int) -> None:
        """Shortens the text to its first `characters`. What is judged in another form stays or goes whole."""
        for holder, key, text, start in self.places:
            kept = max(0, characters - start)
            if kept < len(text):
                holder[key] = text[:kept] if holder[key] == text else ""
        self.choice["logprobs"] = None


class ChoiceReader:
    """What one choice carries from chunk to chunk."""

    def __init__(self, names: Collection[str], logprobs: bool) -> None:
        self._names = names
        self._half = ""
        """Half of a surrogate pair with which the text so far ends."""
        self._escapes = Escapes()
        self._interleaved = Interleaved()
        self._logprobs = {field: OwnLogprobs() for field in TEXT_FIELDS} if logprobs else {}

    def read(self, entry: ChatChoice, logprobs: Any, extra: tuple[str, ...]) -> None:
        """Fills in the entry's places, and those log-probabilities that may go out with it."""
        entry.places = self._judged(entry, extra)
        _remove_unread(entry)
        if self._half or any(_is_torn(place.text) for place in entry.places):
            self._mend(entry.places)
            if entry.key == "message" and self._half:
                _append(entry.message, self.rest())
            entry.places = self._judged(entry, extra)
        of = owners_of(entry.choice, entry.message)
        entry.places = self._escapes.decoded(of, entry.places)
        entry.again = self._interleaved.again(of, entry.message, entry.places)
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

    def fields(self) -> list[str]:
        """The whole text of each field, to be judged at the end of an answer whose text waits for it."""
        return self._interleaved.fields()

    def _judged(self, entry: ChatChoice, extra: tuple[str, ...]) -> list[TextPlace]:
        found = places_of(entry.message)
        length = len(message_text.text_of_places(found))
        holders = [(holder, key) for holder in (entry.message, entry.choice) for key in extra]
        for holder, key in [*self._unknown_names(entry.message), *holders]:
            text = holder.get(key)
            if text not in EMPTY:
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
                holder[key] = json.loads(join_surrogates("", text)[0])
                continue
            if (start, text) not in mended:
                mended[start, text], self._half = join_surrogates(self._half, text)
            holder[key] = mended[start, text]


def _remove_unread(entry: ChatChoice) -> None:
    """What the tables let through and nobody reads, such as the second text of a part."""
    read = {(id(place.holder), place.key) for place in entry.places}
    for holder, key, _ in list(message_text.unread(entry.message, "The answer")):
        if (id(holder), key) not in read:
            del holder[key]


def _append(message: dict[str, Any], text: str) -> None:
    content = message.get("content")
    if isinstance(content, list):
        content.append({"type": "text", "text": text})
    else:
        message["content"] = (content or "") + text


def places_of(message: dict[str, Any]) -> list[TextPlace]:
    try:
        return list(message_text.places(message, "The answer"))
    except InvalidMessages:
        raise unreadable() from None


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _is_torn(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def unreadable() -> ApiError:
    return upstream_failed("The LLM's answer is not what its API describes.", "upstream_unreadable")
