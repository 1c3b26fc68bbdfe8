"""Where a text may be parted so that NFC of its parts is the parts of its NFC."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from unicodedata import combining, decomposition, normalize


def starts_segment(character: str) -> bool:
    """Whether NFC never joins `character` to what stands before it, nor puts it before that."""
    return character not in _joining()


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each segment of `text`: a character, and those after it that NFC may join to it."""
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
    """Characters whose decomposition begins with a combining mark, or with what a composition may take up."""
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    decomposed = [each for each in every if decomposition(each) and not decomposition(each).startswith("<")]
    vowels, finals = range(0x1161, 0x1176), range(0x11A8, 0x11C3)  # of Hangul, which is composed by rule
    seconds = {chr(code) for code in (*vowels, *finals)}
    seconds.update(part for each in decomposed for part in normalize("NFD", each)[1:])
    marks = {each for each in every if combining(each)}
    return frozenset({*seconds, *marks, *(each for each in decomposed if normalize("NFD", each)[0] in seconds | marks)})
