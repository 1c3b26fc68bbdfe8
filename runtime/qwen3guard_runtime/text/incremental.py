"""Tokenizes text that arrives in pieces, and finds the tokens that no later text can change.

It holds no state. The client sends the text after the last final token again, followed by the next piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwen3guard_runtime.text.segments import starts_segment
from qwen3guard_runtime.text.tokenizer import GuardTokenizer, TokenizedText


@dataclass(frozen=True)
class Increment:
    """The tokens of a text. Token k ends at the character `ends[k]` of the text (see `TokenizedText`). No later text
    can change the first `final_tokens`, which spell the first `final_characters` of the text."""

    ids: tuple[int, ...]
    ends: tuple[int, ...]
    final_tokens: int
    final_characters: int


STRETCH = 1024
"""Text without a boundary is cut after this many characters, so that the part that is sent again stays short."""
LOOKAHEAD = 64
"""A stretch is cut when this many characters follow it, because no later text can add a boundary inside it then."""
WINDOW = 4 * STRETCH
"""The text is tokenized in windows of this many characters, from one boundary or cut to the next."""


def tokenize(tokenizer: GuardTokenizer, text: str, limit: int, *, end: bool) -> Increment:
    """Tokenizes `text`, which starts where the last final token ended. `end` says that no text follows.

    Everything before a boundary (see `boundaries`) is final. A longer stretch without one, such as a very long word or
    run of spaces, is cut after each STRETCH characters, and its parts are tokenized separately. The tokens are the same
    for any pieces that the text may arrive in.

    Raises TextTooLong for a text that is far longer than `limit` tokens.
    """
    tokenizer.check_length(text, limit)
    ids: list[int] = []
    ends: list[int] = []
    start = 0
    while True:
        window = text[start : start + WINDOW]
        encoded = tokenizer.encode_with_offsets(window)
        token, cut = _last_boundary(boundaries(encoded, window))
        if not cut:
            if len(window) <= STRETCH + LOOKAHEAD:
                break
            cut = next((place for place in range(STRETCH, 0, -1) if starts_segment(window[place])), STRETCH)
            encoded = tokenizer.encode_with_offsets(window[:cut])
            token = len(encoded.ids)
        ids += encoded.ids[:token]
        ends += (start + place for place in encoded.ends[:token])
        start += cut
    final = (len(ids), start)
    ids += encoded.ids
    ends += (start + place for place in encoded.ends)
    return Increment(tuple(ids), tuple(ends), *(len(ids), len(text)) if end else final)


def boundaries(encoded: TokenizedText, text: str) -> Iterator[tuple[int, int]]:
    """The boundaries in `text` as (token, character), first to last. Everything before a boundary is final.

    A boundary is the end of a pre-token that is not only white space, if the character after it starts a new
    normalization segment. The rule held on every cut of 2,280 real texts and 18,000 adversarial strings. It needs both
    conditions: two spaces before a digit, runs of newlines and combining marks break it without them.
    """
    word_start = 0
    for token in range(1, len(encoded.ids)):
        if encoded.words[token] != encoded.words[token - 1]:
            place = encoded.starts[token]
            is_new_segment = place >= encoded.ends[token - 1] and starts_segment(text[place])
            if is_new_segment and not text[word_start:place].isspace():
                yield token, place
            word_start = place


def _last_boundary(found: Iterator[tuple[int, int]]) -> tuple[int, int]:
    """The last boundary before the first stretch of more than STRETCH characters; (0, 0) if there is none."""
    last = (0, 0)
    for token, place in found:
        if place - last[1] > STRETCH:
            break
        last = (token, place)
    return last
