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
"""Neighbouring windows have at least this many characters in common, or a quarter of a window."""
SMALLER, LARGER = 3, 4
"""A window that does not fit is made smaller by this factor, and those after it too."""
SHORTEST = 400
"""The fewest characters of a window that are tried."""
WORD = 64
"""A window is shorter by up to this many characters, so that it ends between two words or at least two characters."""
LONGEST_TOKENS = 1 << 22
"""The limit of messages that are divided here: the text of a context of so many tokens."""
ZERO_WIDTH_JOINER = "\u200d"

MakeCall = Callable[[str], Call[Classification]]


def judge_in_windows(
    prompt: str | None, response: str | None, messages: Messages | str | None, context: Context
) -> Judging:
    """The classification of the conversation. If it is too long, its last turn is judged in windows: the most severe
    decides.

    The windows are as large as fit, but for a quarter. Every piece of the text that is no longer than their overlap is
    whole in one of them.

    Raises TextTooLong if the turns before the last one leave no room.
    """
    try:
        return (yield calls.classify(prompt, response, messages, context))
    except TextTooLong:
        text, make = _last_turn(prompt, response, messages, context)
    windows = yield from _windows(text, make)
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


def _windows(text: str, make: MakeCall) -> Generator[Call[Classification], Classification, list[Window]]:
    """The windows of `text`, which does not fit as a whole. White space alone is not judged. Raises TextTooLong."""
    found: list[Window] = []
    covered, size = 0, len(text) * SMALLER // LARGER
    while covered < len(text):
        if size < SHORTEST:
            raise TextTooLong(f"The turns before the last one leave no room for {SHORTEST} characters of it.")
        start = _boundary(text, covered - min(OVERLAP, size // 4)) if covered else 0
        end = _boundary(text, start + size) if start + size < len(text) else len(text)
        if text[start:end].strip():
            try:
                verdict = yield make(text[start:end])
            except TextTooLong:
                size = size * SMALLER // LARGER
                continue
            found.append(Window(start, end, verdict))
        covered = end
    return found


def _boundary(text: str, place: int) -> int:
    """The nearest place up to `place` where a word ends, or else a character with its marks."""
    near = range(place, max(0, place - WORD), -1)
    between_words = (at for at in near if text[at].isspace())
    between_characters = (at for at in near if not _is_inside(text, at))
    return next(between_words, next(between_characters, place))


def _is_inside(text: str, at: int) -> bool:
    """Whether what stands at `at` belongs to the character before it, as a mark and a part of an emoji do."""
    joined = ZERO_WIDTH_JOINER in text[at - 1 : at + 1]
    return joined or unicodedata.category(text[at]).startswith("M") or "\U0001f3fb" <= text[at] <= "\U0001f3ff"
