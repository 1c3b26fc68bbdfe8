"""Reads the labels of a row: whether it is unsafe, its categories, and where its unsafe sentence stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3guard_contract.errors import InvalidRequest

from qwen3guard_apps.annotation.rows import Rows, fields_shown, is_missing
from qwen3guard_apps.evaluation.hits import Span
from qwen3guard_apps.evaluation.label_words import (
    KNOWN_LABELS,
    category_of,
    is_no_category,
    level_of,
    names_what_is_safe,
)

TOKEN_SPAN = ("unsafe_start_index", "unsafe_end_index")
CHARACTER_SPAN = ("unsafe_start", "unsafe_end")
LABEL = "label"
OTHER_LABELS = ("unsafe", "is_unsafe", "harmful", "is_harmful", "safe", "is_safe")
"""The fields that are read where there is no LABEL and no other field was named."""


@dataclass(frozen=True)
class LabelFields:
    """The fields that hold a row's labels. Each value of a field in `groups` gets figures of its own.

    `label` None stands for the first of LABEL and OTHER_LABELS that a row has. `controversial_is_unsafe` says how a
    label of Controversial counts; it does not change the guard's decisions.
    """

    label: str | None = None
    category: str = "category"
    groups: tuple[str, ...] = ("language",)
    controversial_is_unsafe: bool = False

    def found(self, record: dict[str, Any]) -> tuple[str, Any]:
        """The name and the value of the field with the row's label. The value is None where the row has none."""
        for name in self.label_names():
            if not is_missing(record.get(name)):
                return name, record[name]
        return self.label_names()[0], None

    def label_names(self) -> tuple[str, ...]:
        """The fields that may hold a row's label, in the order in which they are looked for."""
        return (LABEL, *OTHER_LABELS) if self.label is None else (self.label,)

    def check(self, rows: Rows) -> None:
        """Raises InvalidRequest where no row has a field for its label."""
        seen = dict[str, None]()
        for row in rows.read():
            seen |= dict.fromkeys(row.record or ())
            if not seen.keys().isdisjoint(self.label_names()):
                return
        names = " or ".join(map(repr, self.label_names()))
        raise InvalidRequest(f"No row of {rows.name} has the field {names}; {fields_shown(seen)}: use --label-field.")

    def unsafe(self, record: dict[str, Any]) -> bool:
        """Whether the row is labelled unsafe. Raises InvalidRequest where its label is missing or not known."""
        name, value = self.found(record)
        level = level_of(value, inverted=names_what_is_safe(name))
        if level is None:
            raise InvalidRequest(f"The row's {name!r} is none of {KNOWN_LABELS}.")
        return level.is_unsafe(strict=self.controversial_is_unsafe)

    def contradicting(self, record: dict[str, Any]) -> str:
        """The name of another field for labels that says the opposite of the row's label, or "". Raises
        InvalidRequest where that is missing or not known."""
        unsafe = self.unsafe(record)
        for name in self.label_names():
            level = level_of(record.get(name), inverted=names_what_is_safe(name))
            if level is not None and level.is_unsafe(strict=self.controversial_is_unsafe) != unsafe:
                return name
        return ""

    def categories(self, record: dict[str, Any]) -> tuple[str, ...]:
        """The row's categories, in Qwen3Guard's spelling where that is known."""
        names = dict[str, None]()
        for name in self.category_names(record):
            known = category_of(name)
            names[known.value if known else name] = None
        return tuple(names)

    def category_names(self, record: dict[str, Any]) -> tuple[str, ...]:
        """The row's categories as it spells them."""
        value = record.get(self.category)
        return () if is_missing(value) else tuple(name for name in _names(value) if not is_no_category(name))


def _names(value: Any) -> Iterator[str]:
    """The names in a list, in an object whose true fields are meant, or in a text: one, JSON, or several between ; or
    |."""
    if isinstance(value, dict):
        yield from (str(name) for name, holds in value.items() if holds is True)
    elif isinstance(value, list | tuple):
        yield from map(str, value)
    elif isinstance(value, str) and value.lstrip()[:1] in ("[", "{") and (read := _json(value)) is not None:
        yield from _names(read)
    elif isinstance(value, str) and category_of(value) is None:
        parts = [name for part in re.split(r"[;|]", value) if (name := part.strip())]
        listed = [name.strip() for name in value.split(",")]
        yield from listed if all(map(category_of, listed)) else parts
    else:
        yield str(value)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def span(record: dict[str, Any], first: int, ends: Sequence[int]) -> Span | None:
    """The unsafe sentence in positions of the stream; None where the row has no label of it.

    It is labelled in tokens as in Qwen3GuardTest (from the conversation's first token, both ends inclusive), or in
    characters of the response (the end exclusive). `first` is the position of the response's first token, and `ends`
    are the characters of the response at which its tokens end.
    """
    start, end = (_whole_number(record.get(name)) for name in TOKEN_SPAN)
    if start is not None and end is not None:
        return Span(start, end)
    start, end = (_whole_number(record.get(name)) for name in CHARACTER_SPAN)
    if start is None or end is None or not ends:
        return None
    pieces = zip([0, *ends[:-1]], ends, strict=True)
    inside = [number for number, (begin, stop) in enumerate(pieces) if begin < end and stop > start]
    return Span(first + inside[0], first + inside[-1]) if inside else None


def _whole_number(value: Any) -> int | None:
    """A whole number, also as the text or the float that a table makes of it."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,15}(\.0)?", value.strip()):
        return int(float(value))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
