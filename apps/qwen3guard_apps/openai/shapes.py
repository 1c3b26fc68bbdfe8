"""Shapes of JSON values that pass through the proxy: each reads a value and gives what may pass of it.

A shape without judged text accepts only what can hold no prose: numbers, known words, and identifiers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from qwen3guard_contract.message_text import IDENTIFIER

_UNLIKE_A_WORD = re.compile(r"[0-9_:/@+-]")
_WORD = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2,}(?![A-Za-z0-9])")
_WORD_OF_A_NAME = re.compile(r"[A-Z]?[a-z]{2,}|[A-Z]{2,}")
LONGEST_ABBREVIATION = 3
MOST_WORDS = 4
"""An id may have so many words of letters alone, such as chatcmpl-tool-5f2: with more it may be a sentence."""


class _Removed:
    """The value of a field that does not pass."""


REMOVED = _Removed()


class Shape:
    becomes: ClassVar[str] = "passed"
    """What becomes of the value, for the tables in the documentation."""
    says: str
    """What passes, for the same."""

    def accepts(self, value: Any) -> bool:  # noqa: ARG002
        """Whether `value`, which is not None, passes as it is."""
        return True

    def read(self, value: Any) -> Any:
        """What passes of `value`, which is not None, or REMOVED."""
        return value if self.accepts(value) else REMOVED


@dataclass(frozen=True)
class Number(Shape):
    says: str = "a number"

    def accepts(self, value: Any) -> bool:
        return _is_number(value)


@dataclass(frozen=True)
class Words(Shape):
    """One of some words; `other`, if it is given, takes the place of every other text."""

    words: tuple[str, ...]
    other: str | None = None

    @property
    def says(self) -> str:  # type: ignore[override]
        known = ", ".join(f"`{word}`" for word in self.words)
        return f"one of {known}" + (f"; any other is told as `{self.other}`" if self.other else "")

    def read(self, value: Any) -> Any:
        if isinstance(value, str) and value in self.words:
            return value
        return self.other if self.other and isinstance(value, str) and value not in ("", "null") else REMOVED


@dataclass(frozen=True)
class Identifier(Shape):
    """An id: one word of at most 128 characters, which has something that a word of prose has not, or is short."""

    says: str = "an id"

    def accepts(self, value: Any) -> bool:
        return is_id(value)


@dataclass(frozen=True)
class Name(Shape):
    """A name that a caller chose: one word of at most 128 characters."""

    says: str = "a name without spaces"

    def accepts(self, value: Any) -> bool:
        return is_name(value)


@dataclass(frozen=True)
class WithoutText(Shape):
    """Numbers and truth values, also in objects whose fields are names. A list of numbers may be ids of tokens."""

    becomes = "passed, or removed"
    says: str = "numbers and truth values, also in objects; no list of numbers, which may be ids of tokens"

    def accepts(self, value: Any) -> bool:
        return _is_without_text(value)


@dataclass(frozen=True)
class Anything(Shape):
    """What a caller's own request says, and no model reads as a turn."""

    says: str = "as it is"


@dataclass(frozen=True)
class Checked(Shape):
    """What the reader of conversations accepts, or refuses by its name."""

    becomes = "passed, or refused"
    says: str


@dataclass(frozen=True)
class String(Shape):
    """One text that the guard judges."""

    becomes = "passed, or judged"
    says: str = "text"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str)


@dataclass(frozen=True)
class Text(Shape):
    """Text that the guard judges. Numbers are none, and an object is for the reader to refuse."""

    becomes = "judged"
    says: str = "text"

    def accepts(self, value: Any) -> bool:
        return not _is_number(value)


@dataclass(frozen=True)
class JsonText(Shape):
    """A value that the guard judges: a text as it is, or any other value as its JSON."""

    becomes = "judged"
    says: str = "text, or any JSON"


@dataclass(frozen=True)
class Parts(Shape):
    """A text, or a list of parts, each of which is a text or has a known type. Both are judged."""

    becomes = "judged"
    part: Shape
    types: Collection[str]
    says: str = "text, or parts of text"

    def read(self, value: Any) -> Any:
        if not isinstance(value, list):
            return Text().read(value)
        read = [each if isinstance(each, str) else self._part(each) for each in value]
        return [each for each in read if each is not REMOVED]

    def _part(self, value: Any) -> Any:
        known = isinstance(value, dict) and value.get("type") in (None, *self.types)
        return self.part.read(value) if known else REMOVED


@dataclass(frozen=True)
class ListOf(Shape):
    """A list; what does not pass is left out."""

    becomes = "by its table"
    shape: Shape
    says: str = "a list"

    def read(self, value: Any) -> Any:
        if not isinstance(value, list):
            return REMOVED
        read = [self.shape.read(each) for each in value if each is not None]
        return [each for each in read if each is not REMOVED]


@dataclass(frozen=True)
class ObjectOf(Shape):
    """An object of which the named fields pass. A field that is null passes: it says nothing."""

    becomes = "by its table"
    fields: Mapping[str, Shape]
    says: str = "an object"

    def read(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return REMOVED
        passed = {}
        for name, shape in self.fields.items():
            if name in value:
                read = None if value[name] is None else shape.read(value[name])
                if read is not REMOVED:
                    passed[name] = read
        return passed


def is_id(value: Any, *, most_words: int = MOST_WORDS) -> bool:
    """Whether `value` is one word that no prose has: with a digit or a sign in it, and few words between its signs."""
    if not is_name(value) or len(_WORD.findall(value)) > most_words:
        return False
    return len(value) <= LONGEST_ABBREVIATION or bool(_UNLIKE_A_WORD.search(value))


def may_be_prose(name: str) -> bool:
    """Whether a name has so many words, between its signs or with capitals, that it may be a sentence."""
    return len(_WORD_OF_A_NAME.findall(name)) > MOST_WORDS


def is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(IDENTIFIER.fullmatch(value))


def _is_without_text(value: Any) -> bool:
    if isinstance(value, dict):
        return all(is_name(name) and _is_without_text(each) for name, each in value.items())
    if isinstance(value, list):
        return all(isinstance(each, bool | dict) and _is_without_text(each) for each in value)
    return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number or a truth value; JSON has no others."""
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
