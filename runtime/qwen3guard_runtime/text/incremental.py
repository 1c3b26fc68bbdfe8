"""Text that arrives in pieces: which of its tokens are final, whatever text follows.

Stateless. The client sends the text after the last final token again, with the next piece in front of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwen3guard_runtime.text.segments import starts_segment
from qwen3guard_runtime.text.tokenizer import GuardTokenizer, TokenizedText


@dataclass(frozen=True)
class Increment:
    """Tokens of a text. Token k ends at its character `ends[k]`, as `TokenizedText` says. The first `final_tokens`,
    which spell the text's first `final_characters`, can no longer change."""

    ids: tuple[int, ...]
    ends: tuple[int, ...]
    final_tokens: int
    final_characters: int


STRETCH = 1024
"""Characters without a boundary after which text is cut all the same, so that no tail grows for ever."""
LOOKAHEAD = 64
"""Characters that must follow a stretch before it is cut: by then every boundary inside it has shown itself."""
WINDOW = 4 * STRETCH


def tokenize(tokenizer: GuardTokenizer, text: str, limit: int, *, end: bool) -> Increment:
    """Tokens of `text`, which starts where the last final token ended; `end` says that nothing follows.

    Raises TextTooLong for a text far beyond `limit` tokens.

    All before a boundary (see `boundaries`) is final. A stretch of more than STRETCH characters without one, an
    endless word or run of spaces, is cut after each STRETCH characters and its parts are tokenized apart; wherever
    the pieces were cut that the text came in, the tokens are the same.
    """
    tokenizer.check_length(text, limit)
    ids: list[int] = []
    ends: list[int] = []
    start = 0
    while True:
        window = text[start : start + WINDOW]
        pieces = tokenizer.pieces(window)
        token, at = _last_within_reach(boundaries(pieces, window))
        if not at:
            if len(window) <= STRETCH + LOOKAHEAD:
                break
            at = next((place for place in range(STRETCH, 0, -1) if starts_segment(window[place])), STRETCH)
            pieces = tokenizer.pieces(window[:at])
            token = len(pieces.ids)
        ids += pieces.ids[:token]
        ends += (start + place for place in pieces.ends[:token])
        start += at
    final = (len(ids), start)
    ids += pieces.ids
    ends += (start + place for place in pieces.ends)
    return Increment(tuple(ids), tuple(ends), *(len(ids), len(text)) if end else final)


def boundaries(pieces: TokenizedText, text: str) -> Iterator[tuple[int, int]]:
    """Where `text` may be parted, as (token, character), first to last: what stands before is final.

    The rule, which held on every cut of 2,280 real texts and 18,000 adversarial strings: all before a
    pre-token boundary is final if the pre-token before it is not white space alone and the character
    after it starts a new normalization segment. (Two spaces before a digit, runs of newlines and combining
    marks break it without either condition.)
    """
    word_start = 0
    for token in range(1, len(pieces.ids)):
        if pieces.words[token] != pieces.words[token - 1]:
            at = pieces.starts[token]
            if at >= pieces.ends[token - 1] and starts_segment(text[at]) and not text[word_start:at].isspace():
                yield token, at
            word_start = at


def _last_within_reach(found: Iterator[tuple[int, int]]) -> tuple[int, int]:
    """The last boundary before the first stretch that is too long; (0, 0) if there is none."""
    last = (0, 0)
    for token, at in found:
        if at - last[1] > STRETCH:
            break
        last = (token, at)
    return last
