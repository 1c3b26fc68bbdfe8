"""Windows of a turn that is too long: they cover it, and the most severe decides. The guard is a double here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qwen3guard_client import windows
from qwen3guard_client.transport.calls import Call
from qwen3guard_client.windows import SHORTEST, WORD, judge_in_windows
from qwen3guard_contract import errors, wire
from qwen3guard_contract.labels import AnswerStatus, RiskLevel
from qwen3guard_contract.messages import parse_messages
from qwen3guard_contract.verdict import Classification

SAFE = Classification(
    RiskLevel.SAFE, (), None, {RiskLevel.UNSAFE: 0.0}, {}, {}, False, False, False, "", "", AnswerStatus.COMPLETE
)


def ask(
    room: int,
    verdict: Callable[[str], Classification],
    *conversation: Any,
    context: Any = "whole",
    asked: list[Call[Any]] | None = None,
) -> Classification:
    """The judgement by a guard whose context has room for so many characters, and that reads them as `verdict`."""
    prompt, response, messages = conversation
    judging = judge_in_windows(prompt, response, messages, context)
    call: Call[Classification] = next(judging)
    while True:
        if asked is not None:
            asked.append(call)
        text = text_of(call)
        try:
            call = judging.throw(errors.TextTooLong("")) if len(text) > room else judging.send(verdict(text))
        except StopIteration as done:
            result: Classification = done.value
            return result


def text_of(call: Call[Any]) -> str:
    """The text of all turns."""
    if wire.MESSAGES in call.values:
        return "".join(each.content for each in parse_messages(call.values[wire.MESSAGES][0]))
    return "".join(call.values[each][0].decode() for each in (wire.PROMPT, wire.RESPONSE) if each in call.values)


def finds(word: str) -> Callable[[str], Classification]:
    return lambda text: replace(SAFE, severity=RiskLevel.UNSAFE, unsafe=True) if word in text else SAFE


CONVERSATIONS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "prompt": lambda text: (text, None, None),
    "response": lambda text: ("Tell me.", text, None),
    "messages": lambda text: (
        None,
        None,
        [{"role": "system", "content": "Be nice."}, {"role": "user", "content": text}],
    ),
    "JSON": lambda text: (None, None, json.dumps([{"role": "tool", "content": [{"type": "text", "text": text}]}])),
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
@given(st.integers(1000, 20_000), st.floats(0, 1), st.sampled_from("x \u0301\u200d\U0001f469"), st.integers(900, 5000))
def test_a_word_is_found_wherever_it_stands(kind: str, length: int, place: float, filler: str, room: int) -> None:
    word = "|harm, of up to a hundred characters" + "!" * 60 + "|"
    text = filler * length
    at = int(place * length)
    text = text[:at] + word + text[at:]
    found = ask(room, finds(word), *CONVERSATIONS[kind](text))
    assert found.unsafe
    assert found.severity is RiskLevel.UNSAFE
    if found.windows:
        assert found.windows[0].start == 0 or not text[: found.windows[0].start].strip()
        assert found.windows[-1].end == len(text) or not text[found.windows[-1].end :].strip()
        for window in found.windows:
            assert window.verdict.unsafe == (word in text[window.start : window.end])
        for one, other in zip(found.windows, found.windows[1:], strict=False):
            assert one.start < other.start
            assert one.end < other.end
            assert other.start < one.end or not text[one.end : other.start].strip()


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_what_fits_is_judged_as_without_windows(kind: str) -> None:
    text = "word " * 300
    assert ask(len(text) + 100, finds("word"), *CONVERSATIONS[kind](text)) == finds("word")(text)


def test_the_most_severe_window_decides() -> None:
    text = " ".join(f"{number:04}" for number in range(800))
    levels = {"0100": (RiskLevel.UNSAFE, 0.6), "0400": (RiskLevel.CONTROVERSIAL, 0.9), "0700": (RiskLevel.UNSAFE, 0.8)}

    def verdict(part: str) -> Classification:
        level, probability = max((levels[each] for each in levels if each in part), default=(RiskLevel.SAFE, 0.1))
        return replace(SAFE, severity=level, severity_probabilities={RiskLevel.UNSAFE: probability})

    found = ask(1000, verdict, text, None, None)
    assert (found.severity, found.severity_probabilities) == (RiskLevel.UNSAFE, {RiskLevel.UNSAFE: 0.8})
    levels["0700"] = levels["0100"]
    first = ask(1000, lambda part: replace(verdict(part), answer=part[:4]), text, None, None)
    worst = [window for window in first.windows if window.verdict.severity is RiskLevel.UNSAFE]
    assert len(worst) >= 2
    assert first.answer == worst[0].verdict.answer


def test_a_window_that_the_servers_thresholds_call_unsafe_is_not_hidden_by_a_more_severe_one() -> None:
    def verdict(part: str) -> Classification:
        if "b" in part:
            return replace(SAFE, unsafe=True)
        return replace(SAFE, severity=RiskLevel.CONTROVERSIAL)

    found = ask(1000, verdict, "a" * 3000 + "b", None, None)
    assert (found.severity, found.unsafe) == (RiskLevel.CONTROVERSIAL, True)


def test_no_window_begins_or_ends_inside_a_word_or_an_emoji() -> None:
    for unit in ("wording ", "e\u0301\u0302", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd"):
        text = unit * 1000
        for window in ask(1500, finds("?"), text, None, None).windows:
            assert window.start % len(unit) in (0, len(unit.rstrip()))
            assert window.end % len(unit) in (0, len(unit.rstrip()))


def test_turns_that_leave_no_room_are_an_error() -> None:
    turns = [{"role": "user", "content": "a" * 2000}, {"role": "user", "content": "b" * 5000}]
    with pytest.raises(errors.TextTooLong, match="leave no room"):
        ask(2000, finds("?"), None, None, turns)
    with pytest.raises(errors.TextTooLong, match="leave no room"):
        ask(2000, finds("?"), "a" * 2000, "b" * 5000, None)


def test_each_window_covers_more_of_the_text() -> None:
    for size in range(SHORTEST, 3 * SHORTEST):
        back = min(windows.OVERLAP, size // 4) + WORD
        assert size - WORD > back


def test_recent_context_is_asked_for_in_every_window() -> None:
    asked: list[Call[Any]] = []
    ask(2000, finds("?"), "word " * 1000, None, None, context="recent", asked=asked)
    assert len(asked) > 3
    assert all(call.values[wire.RECENT] == [True] for call in asked)


def test_white_space_is_no_window() -> None:
    found = ask(1000, finds("b"), "a" + " " * 10_000 + "b", None, None)
    assert found.unsafe
    assert all(("a" + " " * 10_000 + "b")[window.start : window.end].strip() for window in found.windows)
