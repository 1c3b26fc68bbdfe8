"""Surrogate pairs that are cut between two pieces of text, as JSON's \\u escapes in UTF-16 may be."""

from __future__ import annotations

REPLACEMENT = "\ufffd"
"""What a lone half is judged and shown as."""


def join_surrogates(half: str, piece: str) -> tuple[str, str]:
    """The text of `half` and `piece` with whole pairs, and the half with which they end, or an empty string.

    `half` is what the last call returned so. Every other lone half becomes a REPLACEMENT.
    """
    text = half + piece
    if text.isascii():
        return text, ""
    end = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
    text = text.removesuffix(end) if end else text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), end


def without_lone_surrogates(text: str) -> str:
    """`text` with whole pairs, and a REPLACEMENT for every lone half."""
    whole, half = join_surrogates("", text)
    return whole + REPLACEMENT * len(half)
