"""The text of one chat message in OpenAI's form: where it stands, in which order it is read, and what is not read.

It is one text: the reasoning, the content, the refusal, and then the arguments of function and tool calls. No other
module names these fields, so that every door of the guard reads a message in the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from qwen3guard_contract.errors import InvalidMessages
from qwen3guard_contract.text import shown, unescaped, valid_text

TEXT_FIELDS = ("reasoning_content", "reasoning", "content", "refusal")
"""The fields of a message that are text, or a list of parts, in the order in which they are read."""
PART_FIELDS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
    "reasoning": "text",
    "reasoning_text": "text",
    "summary_text": "text",
}
"""The types of parts that are text, and the field that has it. `thinking` may be a list of parts of the other types."""
CALL_FIELDS = ("arguments", "input")
"""The fields of a function or tool call that are text. A value that is not a string is read as its JSON."""
CALLED = ("function", "custom")
"""The fields of a tool call that hold what is called, with its arguments."""
IDENTIFIERS = ("role", "id", "name", "type", "tool_call_id", "status")
"""Fields that are not read, if they have an IDENTIFIER."""
IDENTIFIER = re.compile(r"[A-Za-z0-9_.:/@+-]{1,128}")
EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values that say nothing."""


class TextPlace(NamedTuple):
    """A text in a message: `holder[key]` is `text`, or a value that is read as it.

    `start` is where it begins in the message's text. A field with the same text as one before it is a mirror of that:
    it has the same start, and is judged once.
    """

    holder: Any
    key: Any
    text: str
    start: int


def text_of_message(raw: dict[str, Any], where: str) -> str:
    """The text of a message. `where` names the message, as an error's sentence begins: "Message 3".

    Raises InvalidMessages for what the guard cannot read (a part that is not text, a field with text that is not read)
    and InvalidEncoding for lone surrogates.
    """
    for _, key, place in unread(raw, where):
        if key in IDENTIFIERS:
            raise InvalidMessages(f"{place} has a {key} that is not an identifier; the guard does not read it.")
        raise InvalidMessages(f"{place} has a field {shown(key)}, which the guard does not read.")
    found = with_decoded_calls(places(raw, where), lambda place: "".join(unescaped(place.text)))
    return valid_text(text_of_places(found), f"The text of {_inside(where)}")


def text_of_places(found: Iterable[TextPlace]) -> str:
    """The text of a message, of its places."""
    text = ""
    for place in found:
        if place.start == len(text):
            text += place.text
    return text


def places(raw: dict[str, Any], where: str) -> Iterator[TextPlace]:
    """Each text of a message that is not empty, in reading order.

    Other fields are ignored (`unread` has them). Raises InvalidMessages for a value that is not text.
    """
    starts: dict[str, int] = {}
    length = 0
    for key in TEXT_FIELDS:
        found = list(_texts(raw, key, where))
        whole = "".join(text for _, _, text in found)
        start = starts.setdefault(whole, length)
        length = max(length, start + len(whole))
        for holder, part_key, text in found:
            yield TextPlace(holder, part_key, text, start)
            start += len(text)
    for call, place, _ in _calls(raw, where):
        for key in CALL_FIELDS:
            if text := _argument(call.get(key), f"The {key} of {_inside(place)}"):
                yield TextPlace(call, key, text, length)
                length += len(text)


def with_decoded_calls(found: Iterable[TextPlace], decode: Callable[[TextPlace], str]) -> Iterator[TextPlace]:
    """The places, with what the arguments of calls say: they are JSON, in which letters may be escapes."""
    shift = 0
    for place in found:
        text = decode(place) if place.key in CALL_FIELDS else place.text
        yield place._replace(text=text, start=place.start + shift)
        shift += len(text) - len(place.text)


def unread(raw: dict[str, Any], where: str) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Each field, at any depth, with text that is not read: its holder, its name, and where the holder is.

    Numbers, True, False, null, empty values, identifiers and `cache_control` are no text; a list of numbers may be.
    Raises InvalidMessages as `places` does.
    """
    objects = [(raw, where, {*TEXT_FIELDS, "function_call", "tool_calls"})]
    for field in TEXT_FIELDS:
        parts = _parts(raw.get(field), where)
        objects += [(part, place, {key}) for part, key, place in parts if isinstance(part, dict)]
    objects += [(call, place, {*CALL_FIELDS, *inner}) for call, place, inner in _calls(raw, where)]
    for holder, place, read in objects:
        for key, value in list(holder.items()):
            if key not in read and not _is_harmless(key, value):
                yield holder, key, place


def _texts(raw: dict[str, Any], field: str, where: str) -> Iterator[tuple[Any, Any, str]]:
    """The holder, the key and the text of each text of one field."""
    value = raw.get(field)
    if isinstance(value, list):
        found = [(part, key, place) for part, key, place in _parts(value, where)]
    else:
        found = [(raw, field, where)]
    for holder, key, place in found:
        text = holder[key] if isinstance(holder, list) else holder.get(key)
        if isinstance(text, str) and text:
            yield holder, key, text
        elif text not in EMPTY and not isinstance(text, str | list):
            raise InvalidMessages(f"The {key} of {_inside(place)} is not text.")


def _parts(value: Any, where: str, *, nested: bool = False) -> Iterator[tuple[Any, Any, str]]:
    """Each part in a list, also inside a part `thinking`: what holds its text, under which key, and where it is.

    A part may also be a string; then the list holds the text. Raises InvalidMessages for a part that is not text.
    """
    for index, part in enumerate(value if isinstance(value, list) else ()):
        place = f"Part {index + 1} of {_inside(where)}"
        if isinstance(part, str):
            yield value, index, place
            continue
        key = _text_key(part, place)
        yield part, key, place
        if isinstance(part.get(key), list):
            if key != "thinking" or nested:
                raise InvalidMessages(f"{place} has no string as its {key}.")
            yield from _parts(part[key], place, nested=True)


def _text_key(part: Any, place: str) -> str:
    """The name of the field that is the text of a part."""
    if not isinstance(part, dict):
        raise InvalidMessages(f"{place} is not an object of the type text.")
    kind = part.get("type")
    if kind is None:
        return "text"
    if not isinstance(kind, str):
        raise InvalidMessages(f"{place} has a type that is not a string.")
    if kind not in PART_FIELDS:
        raise InvalidMessages(f"{place} has the type {shown(kind)}; the guard reads text alone.")
    return PART_FIELDS[kind]


def _calls(raw: dict[str, Any], where: str) -> Iterator[tuple[dict[str, Any], str, tuple[str, ...]]]:
    """Each object of a message that may hold a call's arguments, where it is, and the fields that are such objects."""
    calls = raw.get("tool_calls")
    if calls not in EMPTY and not isinstance(calls, list):
        raise InvalidMessages(f"The tool_calls of {_inside(where)} are not a list.")
    found: list[tuple[Any, str, tuple[str, ...]]] = []
    found.append((raw.get("function_call"), f"The function_call of {_inside(where)}", ()))
    for index, call in enumerate(calls or ()):
        place = f"Call {index + 1} of {_inside(where)}"
        found.append((call, place, CALLED))
        if isinstance(call, dict):
            found += [(call.get(kind), place, ()) for kind in CALLED]
    for call, place, inner in found:
        if isinstance(call, dict):
            yield call, place, inner
        elif call not in EMPTY:
            raise InvalidMessages(f"{place} is not an object.")


def _argument(value: Any, what: str) -> str:
    """The text of a call's arguments, which may be any JSON. Raises InvalidMessages for what cannot be JSON."""
    if value in EMPTY:
        return ""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidMessages(f"{what} cannot be read as JSON.") from None


def _is_harmless(key: str, value: Any) -> bool:
    """Whether a field that is not read carries no text."""
    if key == "cache_control" and isinstance(value, dict) and set(value) <= {"type", "ttl"}:
        return all(isinstance(each, str) and IDENTIFIER.fullmatch(each) for each in value.values())
    if key in IDENTIFIERS and isinstance(value, str) and IDENTIFIER.fullmatch(value):
        return True
    is_empty = value in EMPTY or (isinstance(value, str) and not value.strip())
    return bool(IDENTIFIER.fullmatch(key)) and (is_empty or isinstance(value, bool | int | float))


def _inside(where: str) -> str:
    """`where` as it stands inside a sentence."""
    return where[:1].lower() + where[1:]
