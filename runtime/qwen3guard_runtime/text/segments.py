"""Finds the places where a text can be split so that the parts can be normalized (NFC) each by itself: their NFC,
joined again, is the NFC of the whole text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from unicodedata import combining, decomposition, normalize


def starts_segment(character: str) -> bool:
    """Whether NFC never composes `character` with the characters before it, and never moves it before them."""
    return character not in _joining()


def spans(text: str) -> Iterator[tuple[int, int]]:
    """The start and end of each segment of `text`: a character, and the characters after it that NFC may join to it."""
    joining = _joining()
    start = 0
    for at in range(1, len(text)):
        if text[at] not in joining:
            yield start, at
            start = at
    if text:
        yield start, len(text)


@cache
def _joining() -> frozenset[str]:
    """The characters that may join the characters before them: combining marks, characters that are not the first in a
    decomposition, and characters whose own decomposition begins with one of these."""
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    decomposed = [each for each in every if decomposition(each) and not decomposition(each).startswith("<")]
    vowels, finals = range(0x1161, 0x1176), range(0x11A8, 0x11C3)  # of Hangul, which is composed by a rule
    joining = {chr(code) for code in (*vowels, *finals)}
    joining.update(part for each in decomposed for part in normalize("NFD", each)[1:])
    joining.update(each for each in every if combining(each))
    return frozenset(joining | {each for each in decomposed if normalize("NFD", each)[0] in joining})
