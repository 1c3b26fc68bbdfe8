"""Judges a last turn that is longer than the context in overlapping windows.

This module makes no calls: its generator yields each call, and its driver sends the classification back or throws the
error.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Generator
from dataclasses import replace

from qwen3guard_contract.errors import TextTooLong
from qwen3guard_contract.labels import RiskLevel
from qwen3guard_contract.messages import parse_messages
from qwen3guard_contract.verdict import Classification, Window

from qwen3guard_client.arguments import Context
from qwen3guard_client.transport import calls
from qwen3guard_client.transport.calls import Call, Messages

Judging = Generator[Call[Classification], Classification, Classification]
OVERLAP = 1000
"""Neighbouring windows have at least this many characters in common, or a quarter of the text that they divide."""
SHORTEST = 400
"""A text of fewer characters is not divided: if it does not fit, the turns before it leave no room."""
WORD = 64
"""A window is longer by up to this many characters, so that it ends between two words or at least two characters."""
LONGEST_TOKENS = 1 << 22
"""The limit of messages that are divided here: the text of a context of so many tokens."""
ZERO_WIDTH_JOINER = "\u200d"

MakeCall = Callable[[str], Call[Classification]]


def judge_in_windows(
    prompt: str | None, response: str | None, messages: Messages | str | None, context: Context
) -> Judging:
    """The classification of the conversation. If it is too long, its last turn is judged in windows: the most severe
    decides.

    A text that does not fit is divided in two, again and again until each part fits, so a window has more than half of
    the room, if tokens are alike. Every piece of text that is no longer than the overlap is whole in some window.
    Raises TextTooLong if the turns before the last one leave no room.
    """
    try:
        return (yield calls.classify(prompt, response, messages, context))
    except TextTooLong:
        text, make = _last_turn(prompt, response, messages, context)
    windows = yield from _windows(text, 0, len(text), make)
    worst = max(windows, key=lambda window: _severity(window.verdict))  # the first of equals
    unsafe = any(window.verdict.unsafe for window in windows)
    return replace(worst.verdict, unsafe=unsafe, windows=tuple(windows))


def _severity(verdict: Classification) -> tuple[RiskLevel, float]:
    return verdict.severity, verdict.severity_probabilities.get(RiskLevel.UNSAFE, 0.0)


def _last_turn(
    prompt: str | None, response: str | None, messages: Messages | str | None, context: Context
) -> tuple[str, MakeCall]:
    """The text of the last turn, and the call for the conversation with another text in its place."""
    if messages is not None:
        data = messages if isinstance(messages, str) else json.dumps(messages, ensure_ascii=False)
        turns = [{"role": each.role, "content": each.content} for each in parse_messages(data.encode(), LONGEST_TOKENS)]
        last = turns[-1]
        return last["content"], lambda text: calls.classify(
            None, None, [*turns[:-1], last | {"content": text}], context
        )
    if response is not None:
        return response, lambda text: calls.classify(prompt, text, None, context)
    return prompt or "", lambda text: calls.classify(text, None, None, context)


def _windows(
    text: str, start: int, end: int, make: MakeCall
) -> Generator[Call[Classification], Classification, list[Window]]:
    """The windows from `start` to `end`. White space alone is not judged. Raises TextTooLong."""
    if not text[start:end].strip():
        return []
    if (start, end) != (0, len(text)):  # the whole was tried
        try:
            verdict = yield make(text[start:end])
            return [Window(start, end, verdict)]
        except TextTooLong:
            pass
    if end - start < SHORTEST:
        raise TextTooLong(
            "The turns before the last one leave no room for a window of it: leave some out, or ask for recent context."
        )
    overlap = min(OVERLAP, (end - start) // 4)
    middle = (start + end) // 2
    left = yield from _windows(text, start, _boundary(text, middle + overlap, 1), make)
    right = yield from _windows(text, _boundary(text, middle, -1), end, make)
    return [*left, *right]


def _boundary(text: str, place: int, step: int) -> int:
    """The nearest place where a word ends, or else a character with its marks, from `place` on in the direction of
    `step`."""
    near = range(place, place + step * WORD, step)
    between_words = (at for at in near if text[at].isspace())
    between_characters = (at for at in near if not _is_inside(text, at))
    return next(between_words, next(between_characters, place))


def _is_inside(text: str, at: int) -> bool:
    """Whether what stands at `at` belongs to the character before it, as a mark and a part of an emoji do."""
    joined = ZERO_WIDTH_JOINER in text[at - 1 : at + 1]
    return joined or unicodedata.category(text[at]).startswith("M") or "\U0001f3fb" <= text[at] <= "\U0001f3ff"
