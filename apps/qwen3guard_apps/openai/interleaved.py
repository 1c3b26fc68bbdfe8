"""Fields that an answer writes by turns. A client joins the pieces of each, so they are judged as they are joined."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

from qwen3guard_contract.message_text import CALLED, TEXT_FIELDS, TextPlace

Owners = dict[int, Hashable]
"""What the objects and lists that may hold text are part of, by their id."""
_AGAIN = 256
"""How many characters of a field are judged again where the answer comes back to it."""


MOST_FIELDS = 8
"""Each is a session of the guard's."""


class _Field(NamedTuple):
    """A field of the message, whose text may come in parts."""

    name: str


class Interleaved:
    """The fields of one choice, and where each of them broke off.

    Where an answer comes back to a field, the field's end is judged again, with its sequel. Where that would repeat
    more than is written, as with an answer of few letters of each field by turns, what follows waits for the end of the
    answer, and each field is then judged as an answer of its own (`fields`).
    """

    def __init__(self) -> None:
        self._texts: dict[Hashable, list[str]] = {}
        self._written = self._repeated = 0
        self._waits = False
        self._ends: dict[Hashable, str] = {}
        self._last: set[Hashable] = set()
        """The field that was written last. With those that mirror it, these may be several."""

    def again(self, of: Owners, message: dict[str, Any], places: Iterable[TextPlace]) -> str | None:
        """What is to be judged before the text of `places`: it is empty, unless a field goes on after another one. None
        if the text waits.

        Then it is the end of that field, to which the text is the sequel. Where a later field of `places` goes on, its
        end is followed by its new text, since that does not follow in the text itself.
        """
        found: list[str] = []
        returns, first = False, ""
        last = follows = self._last
        for number, (labels, text) in enumerate(_pieces(of, message, places)):
            follows = set()
            self._written += len(text)
            for label in labels:
                end = self._ends.get(label, "")
                self._texts.setdefault(label, []).append(text)
                returns |= bool(end) and label not in last
                is_first = number == 0 and label is labels[0]
                if is_first:
                    first = end
                elif end:
                    found.append(end + text)
                if is_first or not end:
                    follows.add(label)
                self._ends[label] = (end + text)[-_AGAIN:]
            last = set(labels)
        if returns:  # then the other fields' texts do not stand after their ends
            last = follows
        self._last = last
        again = "".join(f"\n{each}" for each in (*found, first)) if returns else ""
        self._repeated += len(again)
        self._waits |= self._repeated > self._written + _AGAIN
        return None if self._waits else again

    def fields(self) -> list[str]:
        """Each field's whole text, those with the same text once. Of very many fields, the last ones are one text."""
        texts = list(dict.fromkeys("".join(texts) for texts in self._texts.values()))
        return texts if len(texts) <= MOST_FIELDS else [*texts[: MOST_FIELDS - 1], "\n".join(texts[MOST_FIELDS - 1 :])]


def _pieces(of: Owners, message: dict[str, Any], places: Iterable[TextPlace]) -> Iterator[tuple[list[Hashable], str]]:
    """Each text that is judged, with the fields that have it."""
    pieces: dict[Hashable, tuple[int, str]] = {}
    for holder, key, text, start in places:
        owner = of.get(id(holder))
        label: Hashable = (
            owner if isinstance(owner, _Field) else _Field(str(key)) if holder is message else (owner, key)
        )
        begin, before = pieces.get(label, (start, ""))
        pieces[label] = begin, before + text
    groups: dict[tuple[int, str], list[Hashable]] = {}
    for label, piece in pieces.items():
        groups.setdefault(piece, []).append(label)
    for (_, text), labels in groups.items():
        yield labels, text


def owners_of(choice: dict[str, Any], message: dict[str, Any]) -> Owners:
    return dict(_owners(choice, message))


def _owners(choice: dict[str, Any], message: dict[str, Any]) -> Iterator[tuple[int, Hashable]]:
    yield id(choice), "choice"
    for field in TEXT_FIELDS:
        for each in _inside(message.get(field)):
            yield id(each), _Field(field)
    yield id(message.get("function_call")), "function_call"
    for number, call in enumerate(message.get("tool_calls") or ()):
        index = call.get("index")
        label = ("call", number if index is None else index)
        yield id(call), label
        for kind in CALLED:
            if isinstance(call.get(kind), dict):
                yield id(call[kind]), label


def _inside(value: Any) -> Iterator[Any]:
    """A list of parts, its parts, and the lists in them."""
    if isinstance(value, list):
        yield value
        for part in value:
            yield part
            for inner in part.values() if isinstance(part, dict) else ():
                yield from _inside(inner)
