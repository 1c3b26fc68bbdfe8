"""Text that arrives in pieces: which of its tokens are final, whatever text follows.

Stateless. The client sends the text after the last final token again, with the next piece in front of it.
"""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass
from functools import cache

from qwen3guard_runtime.tokenizer import GuardTokenizer


@dataclass(frozen=True)
class Increment:
    """Tokens of a text; the first `final_tokens`, spelling its first `final_characters`, can no longer change."""

    ids: tuple[int, ...]
    final_tokens: int
    final_characters: int


def tokenize(tokenizer: GuardTokenizer, text: str, limit: int, *, end: bool) -> Increment:
    """Tokens of `text`, which starts where the last final token ended; `end` says that nothing follows.

    Raises TextTooLong for a text far beyond `limit` tokens.

    The rule, which held on every cut of 2,280 real texts and 18,000 adversarial strings: all before a
    pre-token boundary is final if the pre-token before it is not white space alone and the character
    after it starts a new normalization segment. (Two spaces before a digit, runs of newlines and combining
    marks break it without either condition.)
    """
    tokenizer.check_length(text, limit)
    pieces = tokenizer.pieces(text)
    if end:
        return Increment(pieces.ids, len(pieces.ids), len(text))
    for token in range(len(pieces.ids) - 1, 0, -1):
        at = pieces.starts[token]
        if (
            pieces.words[token] != pieces.words[token - 1]
            and at >= pieces.ends[token - 1]
            and starts_segment(text[at])
            and not _word(pieces.words, pieces.starts, token, text).isspace()
        ):
            return Increment(pieces.ids, token, at)
    return Increment(pieces.ids, 0, 0)


def _word(words: tuple[int, ...], starts: tuple[int, ...], token: int, text: str) -> str:
    """The pre-token that ends before `token`."""
    first = token - 1
    while first and words[first - 1] == words[token - 1]:
        first -= 1
    return text[starts[first] : starts[token]]


def starts_segment(character: str) -> bool:
    """Whether NFC never joins `character` to what stands before it."""
    return unicodedata.combining(character) == 0 and character not in _second_parts()


@cache
def _second_parts() -> frozenset[str]:
    """Characters that a canonical composition may take up, Hangul vowels and final consonants among them."""
    seconds = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}
    for code in range(sys.maxunicode + 1):
        decomposition = unicodedata.decomposition(chr(code))
        if decomposition and not decomposition.startswith("<"):
            seconds.update(chr(int(part, 16)) for part in decomposition.split()[1:])
    return frozenset(seconds)
