"""An LLM that writes several fields by turns: what a client puts together was judged together."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qwen3guard_apps.openai.choice import places_of
from qwen3guard_apps.openai.interleaved import Interleaved, owners_of
from support.raw_llm import chunk, sse
from support.unserved_proxy import LlmAnswer, Received, receive
from support.word_guard import is_unsafe

ASKED = {"model": "fake", "messages": [{"role": "user", "content": "What shall we eat?"}], "stream": True}
FIELDS = ("content", "reasoning", "reasoning_content", "refusal", "parts", "call 0", "call 1", "name", "id", "function")


def delta(field: str, text: str) -> dict[str, Any]:
    if field == "parts":
        return {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]}
    if field.startswith("call"):
        return {"tool_calls": [{"index": int(field[5:]), "function": {"arguments": text}}]}
    if field in ("name", "id"):
        call = {"index": 0, "id": text} if field == "id" else {"index": 0, "function": {"name": text}}
        return {"tool_calls": [call]}
    return {"function_call": {"arguments": text}} if field == "function" else {field: text}


def joined(found: Received) -> Counter[str]:
    """The text of each field, as a client puts it together."""
    texts: dict[str, str] = {}
    for choice in (choice for event in found.events for choice in event.get("choices", ())):
        for name, value in _texts(choice["delta"], ""):
            texts[name] = texts.get(name, "") + value
    return Counter(texts.values())


def _texts(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        number = value.get("index", "")
        return [each for key, inner in value.items() for each in _texts(inner, f"{name}{number}.{key}")]
    if isinstance(value, list):
        return [each for inner in value for each in _texts(inner, name)]
    return [(name, value)] if isinstance(value, str) else []


def told(*deltas: dict[str, Any], **settings: Any) -> Received:
    events = [chunk(each) for each in deltas]
    return receive(LlmAnswer([sse(each, done=False) for each in events] + [sse(chunk({}, "stop"))]), ASKED, **settings)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("other", ["content", "reasoning", "call 1"])
def test_a_word_in_two_pieces_with_another_field_between_them(field: str, other: str) -> None:
    if field == other or {field, other} == {"content", "parts"}:
        return
    found = told(delta(field, "rice zyq"), delta(other, " and"), delta(field, "stab him"))
    assert not any(map(is_unsafe, joined(found)))
    assert found.events[-1]["choices"][0]["finish_reason"] == "content_filter"
    harmless = told(delta(field, "ri"), delta(other, " and"), delta(field, "ce"))
    assert "rice" in joined(harmless)
    assert not harmless.events[-1]["choices"][0]["guard"]["flagged"]


def test_two_fields_of_each_chunk() -> None:
    pairs = (("ri", "bre"), ("ce zy", "ad"), ("qstab", " and"))
    for first, second in (("content", "reasoning"), ("reasoning", "content"), ("reasoning", "refusal")):
        found = told(*({first: left, second: right} for left, right in pairs))
        assert not any(map(is_unsafe, joined(found)))
    found = told(*({"content": left, "reasoning": right} for left, right in pairs[:2]))
    assert {"rice zy", "bread"} <= set(joined(found))


def test_fields_that_were_mirrors() -> None:
    mirror = {"content": "rice zy", "reasoning": "rice zy"}
    assert not any(map(is_unsafe, joined(told(mirror, {"content": "qstab", "reasoning": " and"}))))
    assert not any(map(is_unsafe, joined(told(mirror, {"reasoning": " and"}, {"content": "qstab"}))))
    both = {"content": "qstab", "reasoning": "qstab"}
    assert not any(map(is_unsafe, joined(told({"content": "rice zy"}, both))))
    others = ({"refusal": "No"}, {"content": "rice zy"}, both | {"refusal": "w"})
    assert not any(map(is_unsafe, joined(told(*others))))


@settings(max_examples=200, deadline=None, database=None)
@given(st.data())
def test_no_field_is_unsafe_when_it_is_put_together(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(["rice zyqstab him", "zyqs and xkill them", "bread and rice"]))
    size = data.draw(st.integers(1, 5))
    deltas: list[dict[str, Any]] = []
    for start in range(0, len(text), size):
        deltas.append({"content": text[start : start + size]})
        between = data.draw(st.lists(st.sampled_from(FIELDS[1:4] + FIELDS[5:7]), max_size=2))
        others = [delta(each, data.draw(st.sampled_from(["ri", "ce", " and ", "x"]))) for each in between]
        if others and "content" not in others[0] and data.draw(st.booleans()):
            deltas[-1] |= others.pop(0)
        deltas += others
    found = told(*deltas)
    assert not any(map(is_unsafe, joined(found))), json.dumps(deltas)
    if not is_unsafe(text):
        assert text in joined(found)


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from(["content", "reasoning", "refusal"]), st.text(max_size=400)), max_size=60))
def test_what_is_judged_grows_with_what_is_written(pieces: list[tuple[str, str]]) -> None:
    """However often the fields change; and every field is judged in one piece, or as it goes on."""
    interleaved, judged, whole = Interleaved(), 0, False
    for field, text in pieces:
        message = {field: text}
        again = interleaved.again(owners_of({}, message), message, places_of(message))
        assert not (whole and again is not None)
        whole = again is None
        judged += 0 if again is None else len(again) + len(text)
    written = sum(len(text) for _, text in pieces)
    assert judged <= 2 * written + 256 + 2
    if whole:
        fields = {"".join(text for name, text in pieces if name == field) for field, _ in pieces}
        assert set(interleaved.fields()) == fields - {""}


def test_letters_of_two_fields_by_turns_are_shown_when_each_field_is_judged_whole() -> None:
    harmless = told(*({"content": letter, "reasoning": "ok "} for letter in "bread and rice " * 20))
    assert {"bread and rice " * 20, "ok " * 300} <= set(joined(harmless))
    found = told(*({"content": letter, "reasoning": "ok "} for letter in "bread and rice, then zyqstab him"))
    assert not any(map(is_unsafe, joined(found)))
    assert found.events[-1]["choices"][0]["finish_reason"] == "content_filter"
