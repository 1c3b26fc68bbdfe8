"""Turns that are left out of a conversation that does not fit: as few as must be, the oldest, and never the last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qwen3guard_contract import errors, layout, wire
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.messages import Message, conversation
from qwen3guard_runtime.gen.guard import ANSWER_TOKENS
from qwen3guard_runtime.gen.models import GuardTokenizerModel
from qwen3guard_runtime.request import Request
from qwen3guard_runtime.stream.models import RESPONSE_SHARE, StreamTokenizerModel
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_runtime.text.recent import render_recent
from support.places import DEMO

GEN, STREAM = (ChatTemplate.load(DEMO / variant) for variant in ("gen", "stream"))
TURNS = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), st.integers(1, 40)), min_size=1, max_size=9
)


def left(messages: list[Message], ids: list[int], template: ChatTemplate) -> list[Message]:
    """The messages whose rendering `ids` are; each text is found in no other."""
    text = template.tokenizer.decode(ids)
    return [each for each in messages if each.content in text]


@settings(max_examples=60)
@given(TURNS, st.sampled_from([GEN, STREAM]), st.integers(60, 300), st.integers(0, 80))
def test_what_is_left_is_a_conversation_of_its_own(
    turns: list[tuple[str, int]], template: ChatTemplate, limit: int, room: int
) -> None:
    messages = [Message(role, f"N{number}:{'word ' * size}.") for number, (role, size) in enumerate(turns)]
    try:
        ids, count = render_recent(template, messages, limit, room)
    except errors.LastRole:
        assert messages[-1].role == "system"
        return
    except errors.TextTooLong:
        indices = [index for index, each in enumerate(messages[:-1]) if each.role == "user"]
        first = indices[-1] if indices and messages[-1].role == "assistant" else len(messages) - 1
        with pytest.raises(errors.TextTooLong):
            template.render([each for each in messages[first:] if each.role != "system"], limit)
        return
    kept = left(messages, ids, template)
    assert ids == template.render(kept, limit)  # what the same conversation gives when it is sent by hand
    assert count == len(messages) - len(kept)
    assert kept[-1] is messages[-1]
    assert kept == [each for each in messages if each in kept]
    if count:
        with pytest.raises(errors.TextTooLong):
            template.render(messages, limit - room)
        spoken = [each for each in messages if each.role != "system"]
        said = [each for each in kept if each.role != "system"]
        assert said == spoken[-len(said) :]
        if said != spoken:
            assert said[0].role == "user" or len(said) == 1
            # With the turns up to the user's before, it would not fit.
            before = [index for index, each in enumerate(spoken[: -len(said)]) if each.role == "user"]
            if before:
                more = [turn for turn in messages if turn.role == "system" or turn in spoken[before[-1] :]]
                with pytest.raises(errors.TextTooLong):
                    template.render(more, limit - room)
    if messages[-1].role == "assistant":
        prompts = [each for each in messages[:-1] if each.role == "user"]
        assert not prompts or prompts[-1] in kept


def test_the_systems_turns_go_last() -> None:
    messages = [Message("system", "one " * 30), Message("user", "two " * 30), Message("system", "three " * 30)]
    messages += [Message("user", "four " * 30)]
    left_out = (messages, [*messages[:1], *messages[2:]], messages[2:], messages[3:])
    needed = [len(STREAM.render(kept, 1000)) for kept in left_out]
    assert [render_recent(STREAM, messages, limit)[1] for limit in needed] == [0, 1, 2, 3]
    assert [render_recent(STREAM, messages, limit - 1)[1] for limit in needed[:-1]] == [1, 2, 3]
    with pytest.raises(errors.TextTooLong):
        render_recent(STREAM, messages, needed[-1] - 1)


def test_room_for_the_response_costs_no_system_turn() -> None:
    messages = [Message("system", "one " * 30), Message("user", "two " * 30), Message("user", "three " * 30)]
    limit = len(STREAM.render([messages[0], messages[2]], 1000))
    assert render_recent(STREAM, messages, limit, room=limit // 2)[1] == 1


def test_thousands_of_turns_are_shortened() -> None:
    messages = [Message(role, "a") for role in ("user", "assistant")] * 20_000
    ids, count = render_recent(GEN, messages, 400)
    assert len(ids) <= 400
    assert ids == GEN.render(messages[count:], 400)


def request(turns: list[tuple[str, str]], *, recent: bool) -> Request:
    data = json.dumps([{"role": role, "content": text} for role, text in turns]).encode()
    tensors = {wire.MESSAGES.name: np.array([data], object), wire.POSITION.name: np.array([0])}
    if recent:
        tensors[wire.RECENT.name] = np.array([True])
    return Request(tensors, frozenset(), sequence="a", start=True)


@pytest.mark.parametrize(("kind", "layout"), [(GuardTokenizerModel, layout.GEN), (StreamTokenizerModel, layout.STREAM)])
def test_only_who_asks_gets_a_shortened_conversation(kind: Any, layout: Any, repository: Path) -> None:
    folder = layout.tokenizer_folder(repository)
    context = Manifest.read(folder).context
    turns = [(role, f"{number} " + "word " * 60) for number in range(40) for role in ("user", "assistant")]
    turns.append(("developer", "Be nice."))
    turns.append(("user", "The last."))

    def answer(served: Any, **options: Any) -> Any:
        return served.handle([request(turns, **options)])[0]

    served = kind(folder)
    assert isinstance(answer(served, recent=False), errors.TextTooLong)
    found = answer(served, recent=True)
    count = found[wire.TURNS_LEFT_OUT.name]
    taken = ANSWER_TOKENS if kind is GuardTokenizerModel else context // RESPONSE_SHARE
    assert context // 2 < len(found[wire.INPUT_IDS.name]) <= context - taken
    assert 0 < count < 80
    turns = turns[count:]
    assert answer(served, recent=False) == answer(served, recent=True) == found | {wire.TURNS_LEFT_OUT.name: 0}

    smaller = answer(kind(folder, {"recent_tokens": "500"}), recent=True)
    assert len(smaller[wire.INPUT_IDS.name]) <= 500 - min(taken, 125)
    assert answer(kind(folder, {"recent_tokens": "0"}), recent=True) == found | {wire.TURNS_LEFT_OUT.name: 0}
    with pytest.raises(errors.InvalidParameter):
        kind(folder, {"recent_tokens": "some"})


def test_messages_beyond_the_limit_of_a_small_context_are_shortened_too() -> None:
    data = json.dumps([{"role": "user", "content": "word " * 200}] * 40).encode()
    with pytest.raises(errors.TextTooLong):
        conversation(data, None, None, 300)
    assert len(conversation(data, None, None, 300, recent=True)) == 40
