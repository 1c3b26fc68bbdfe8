"""The checkpoint's tokenizer, split in two: text never becomes a special token, special tokens are asked for by name.

Knows nothing of conversations or streams.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3guard_contract.errors import TextTooLong, TokenizerMismatch
from tokenizers import Tokenizer

from qwen3guard_runtime.text import segments

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
BYTES_PER_TOKEN = 16
"""No text is longer than this times the context: prose has 3 to 5, and only endless runs of one character have more."""


@dataclass(frozen=True)
class TokenizedText:
    """Tokens of one text. Token k came from text[starts[k]:ends[k]] and belongs to pre-token words[k].

    Starts and ends count the text as it was sent, and stand between two segments of it (`segments`): a token of a
    part of one, a byte of a character or one of several marks on a letter, has the whole of it.
    """

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    words: tuple[int, ...]


class GuardTokenizer:
    """Encodes user text without its special tokens, which are kept apart in `special`."""

    def __init__(self, tokenizer_json: str) -> None:
        try:
            # What a tokenizer cuts or pads to is a setting of whoever saved it: transformers ignores it too.
            description = json.loads(tokenizer_json) | {"truncation": None, "padding": None}
            self.special: dict[str, int] = {
                token["content"]: token["id"] for token in description.get("added_tokens", [])
            }
            # Without added tokens every string is plain text, `<think>` too; without the post-processor
            # offsets cover the whole of the text.
            self._whole = Tokenizer.from_str(json.dumps(description))
            self._plain = Tokenizer.from_str(json.dumps(description | {"added_tokens": [], "post_processor": None}))
        except Exception as error:
            raise TokenizerMismatch(f"The tokenizer cannot be read: {str(error)[:200]}.") from error
        if description.get("normalizer") not in (None, {"type": "NFC"}):  # what `segments` is right for
            raise TokenizerMismatch("The tokenizer has a normalizer that is not NFC, which is not implemented.")
        if description["model"].get("dropout"):
            raise TokenizerMismatch("The tokenizer has dropout: it gives a text other tokens each time.")
        for token in description["added_tokens"]:
            for flag in ("single_word", "lstrip", "rstrip"):
                if token.get(flag):
                    raise TokenizerMismatch(
                        f"The added token {token['content']!r:.60} has {flag}, which is not implemented."
                    )
        for name in (IM_START, IM_END):
            if name not in self.special:
                raise TokenizerMismatch(f"The tokenizer has no {name} token.")
        if min(map(len, self.special)) < 2:  # no mark could be put inside one
            raise TokenizerMismatch("The tokenizer has an added token of less than two characters.")
        names = sorted(self.special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names)))

    @classmethod
    def load(cls, folder: Path) -> GuardTokenizer:
        """Raises TokenizerMismatch if `folder` holds no readable tokenizer.json of the Qwen form."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerMismatch(f"{path} is missing.")
        try:
            return cls(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise TokenizerMismatch(f"{path} is not valid UTF-8.") from None

    def encode(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def check_length(self, text: str, limit: int) -> None:
        """Raises TextTooLong for a text that is not worth tokenizing against a context of `limit` tokens."""
        self.check_size(len(text.encode()), limit)

    def check_size(self, size: int, limit: int) -> None:
        """`check_length` of a text of `size` bytes."""
        if size > BYTES_PER_TOKEN * limit:
            raise TextTooLong(
                f"The text has {size} bytes; a context of {limit} tokens takes at most {BYTES_PER_TOKEN * limit}."
            )

    def pieces(self, text: str) -> TokenizedText:
        normal, starts, ends = self._normal(text)
        encoding = self._plain.encode(normal, add_special_tokens=False)
        return TokenizedText(
            tuple(encoding.ids),
            tuple(starts[start] for start, _ in encoding.offsets),
            tuple(ends[end - 1] for _, end in encoding.offsets),
            tuple(encoding.word_ids),
        )

    def _normal(self, text: str) -> tuple[str, Sequence[int], Sequence[int]]:
        """The normalized text, and where in `text` the segment of each of its characters starts and ends.

        The tokenizer's own offsets into a text that it composes point at the first of the characters composed.
        """
        if text.isascii():
            return text, range(len(text)), range(1, len(text) + 1)
        normalizer = self._plain.normalizer
        changes = normalizer is not None and normalizer.normalize_str(text) != text
        normal, starts, ends = [], [], []
        for start, end in segments.spans(text):
            part = normalizer.normalize_str(text[start:end]) if changes else text[start:end]
            normal.append(part)
            starts += [start] * len(part)
            ends += [end] * len(part)
        return "".join(normal), starts, ends

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._whole.decode(list(ids), skip_special_tokens=False))

    def split_special(self, text: str) -> Iterator[str | int]:
        """The plain stretches of `text` as strings, and between them the special tokens as ids."""
        start = 0
        for found in self._special.finditer(text):
            if found.start() > start:
                yield text[start : found.start()]
            yield self.special[found[0]]
            start = found.end()
        if start < len(text):
            yield text[start:]
