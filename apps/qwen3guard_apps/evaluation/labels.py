"""Reads the labels of a row: whether it is unsafe, its categories, and where its unsafe sentence stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.labels import RiskLevel

from qwen3guard_apps.evaluation.hits import Span

LEVELS = {level.value.casefold(): level for level in RiskLevel}
TOKEN_SPAN = ("unsafe_start_index", "unsafe_end_index")
CHARACTER_SPAN = ("unsafe_start", "unsafe_end")


@dataclass(frozen=True)
class LabelFields:
    """The fields that hold a row's labels. Each value of a field in `groups` gets figures of its own.

    `controversial_is_unsafe` says how a label of Controversial counts; it does not change the guard's decisions.
    """

    label: str = "label"
    category: str = "category"
    groups: tuple[str, ...] = ("language",)
    controversial_is_unsafe: bool = False

    def unsafe(self, record: dict[str, Any]) -> bool:
        """Whether the row is labelled unsafe: by the field `label` (a level, or a boolean), or by `unsafe` or `safe`.

        Raises InvalidRequest where none of these can be read.
        """
        value = record.get(self.label)
        if value is None:
            value = record.get("unsafe")
        if value is None and isinstance(record.get("safe"), bool):
            return not record["safe"]
        if isinstance(value, bool):
            return value
        level = LEVELS.get(value.casefold()) if isinstance(value, str) else None
        if level is None:
            raise InvalidRequest(f"The row's {self.label!r} is none of Safe, Unsafe, Controversial, true and false.")
        return level.is_unsafe(strict=self.controversial_is_unsafe)

    def categories(self, record: dict[str, Any]) -> tuple[str, ...]:
        value = record.get(self.category)
        return tuple(map(str, value)) if isinstance(value, list) else () if value is None else (str(value),)


def span(record: dict[str, Any], first: int, ends: Sequence[int]) -> Span | None:
    """The unsafe sentence in positions of the stream; None where the row has no label of it.

    It is labelled in tokens as in Qwen3GuardTest (from the conversation's first token, both ends inclusive), or in
    characters of the response (the end exclusive). `first` is the position of the response's first token, and `ends`
    are the characters of the response at which its tokens end.
    """
    start, end = (record.get(name) for name in TOKEN_SPAN)
    if isinstance(start, int) and isinstance(end, int):
        return Span(start, end)
    start, end = (record.get(name) for name in CHARACTER_SPAN)
    if not isinstance(start, int) or not isinstance(end, int) or not ends:
        return None
    pieces = zip([0, *ends[:-1]], ends, strict=True)
    inside = [number for number, (begin, stop) in enumerate(pieces) if begin < end and stop > start]
    return Span(first + inside[0], first + inside[-1]) if inside else None
