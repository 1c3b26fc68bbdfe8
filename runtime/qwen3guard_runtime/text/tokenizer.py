"""The checkpoint's tokenizer, with its special tokens kept apart: text never becomes a special token.

This module knows nothing of conversations or streams.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3guard_contract.errors import TextTooLong, TokenizerMismatch
from qwen3guard_contract.messages import BYTES_PER_TOKEN
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from qwen3guard_runtime.text import segments

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of one text. Token k comes from text[starts[k]:ends[k]] and belongs to the pre-token words[k].

    Starts and ends are in characters of the text as it was sent, and are always boundaries of its segments
    (`segments`). A token for only a part of a segment, such as one byte of a character or one of several marks on a
    letter, has the start and the end of the whole segment.
    """

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    words: tuple[int, ...]


class GuardTokenizer:
    """Encodes text as plain text. The ids of the special tokens are in `special`, by their text.

    Raises TokenizerMismatch for a tokenizer that cannot be read or has a feature that is not implemented.
    """

    def __init__(self, tokenizer_json: str) -> None:
        try:
            # The saved truncation and padding are accidental settings; transformers ignores them too.
            description = json.loads(tokenizer_json) | {"truncation": None, "padding": None}
            self.special: dict[str, int] = {
                token["content"]: token["id"] for token in description.get("added_tokens", [])
            }
            # Without added tokens every string is plain text, also `<think>`. Without the post-processor, offsets cover
            # the whole text.
            self._whole = Tokenizer.from_str(json.dumps(description))
            self._plain = Tokenizer.from_str(json.dumps(description | {"added_tokens": [], "post_processor": None}))
        except Exception as error:
            raise TokenizerMismatch(f"The tokenizer cannot be read: {str(error)[:200]}.") from error
        if description.get("normalizer") not in (None, {"type": "NFC"}):  # `segments` is correct only for these
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
        if min(map(len, self.special)) < 2:  # ChatTemplate could not put a mark inside it
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
        """Raises TextTooLong for a text that is far too long for a context of `limit` tokens, before it is
        tokenized."""
        self.check_size(len(text.encode()), limit)

    def check_size(self, size: int, limit: int) -> None:
        """Does what `check_length` does, for a text of `size` bytes."""
        if size > BYTES_PER_TOKEN * limit:
            raise TextTooLong(
                f"The text has {size} bytes; a context of {limit} tokens takes at most {BYTES_PER_TOKEN * limit}."
            )

    def encode_with_offsets(self, text: str) -> TokenizedText:
        normal, starts, ends = self._normalize(text)
        encoding = self._plain.encode(normal, add_special_tokens=False)
        return TokenizedText(
            tuple(encoding.ids),
            tuple(starts[start] for start, _ in encoding.offsets),
            tuple(ends[end - 1] for _, end in encoding.offsets),
            tuple(encoding.word_ids),
        )

    def _normalize(self, text: str) -> tuple[str, Sequence[int], Sequence[int]]:
        """Returns the normalized text, and for each of its characters where its segment starts and ends in `text`.

        The tokenizer's own offsets cannot be used: where it composes characters, they point at the first of them only.
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

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each token adds to that of the tokens before it. The token that ends a character adds all of
        it."""
        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(self._whole, token) or "" for token in ids]

    def split_special(self, text: str) -> Iterator[str | int]:
        """Splits `text` at its special tokens. Yields the plain parts as strings, and the special tokens as ids."""
        start = 0
        for match in self._special.finditer(text):
            if match.start() > start:
                yield text[start : match.start()]
            yield self.special[match[0]]
            start = match.end()
        if start < len(text):
            yield text[start:]
