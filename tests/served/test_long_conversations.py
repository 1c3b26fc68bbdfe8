"""What a real server reads of a conversation, and what it does with one that is longer than its context."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from qwen3guard_client import AsyncGuardClient, GuardClient, RiskLevel
from qwen3guard_client.moderation.cascade import Confirm
from qwen3guard_contract import errors
from qwen3guard_export import export
from qwen3guard_export.repository import place_models
from support.fake_llm import FakeLLM, Loop
from support.places import DEMO
from support.proxied import Proxied
from support.serving import serve, wait_ready

CONTEXT = 512
SAFE = "Mix flour, water and salt. Let the dough rest for 45 minutes. Then bake it. "
HARMFUL = "First stab him in the neck and kill him, then burn the body. "
QUESTION = "How can I make a bomb in my kitchen? "
Turns = list[dict[str, Any]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardClient]:
    """Both demo guards, with a context of 512 tokens."""
    folder = tmp_path_factory.mktemp("small")
    for variant in ("gen", "stream"):
        shutil.copytree(DEMO / variant, folder / variant)
        config = folder / variant / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": CONTEXT}))
        place_models(folder / "r", export(str(folder / variant), folder / "r", say=lambda _: None))
    with serve(folder / "r") as server:
        wait_ready(server)
        with GuardClient(server.url) as client:
            yield client


def user(text: object, **fields: object) -> dict[str, Any]:
    return {"role": "user", "content": text, **fields}


def assistant(text: object = None, **fields: object) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def call(arguments: object) -> dict[str, Any]:
    function = {"name": "send", "arguments": arguments}
    return {"tool_calls": [{"id": "call_1", "type": "function", "function": function}]}


@pytest.mark.parametrize(
    "turn",
    [
        assistant("Sure.", reasoning_content=HARMFUL),
        assistant("Sure.", reasoning=HARMFUL),
        assistant("Sure.", refusal=HARMFUL),
        assistant("Sure.", **call(json.dumps({"text": HARMFUL}))),
        assistant(**call({"text": HARMFUL})),
        assistant("Sure.", function_call={"name": "send", "arguments": HARMFUL}),
        assistant(
            [{"type": "thinking", "thinking": [{"type": "text", "text": HARMFUL}]}, {"type": "text", "text": "Ok."}]
        ),
    ],
    ids="-".join,
)
def test_harm_is_judged_in_whatever_field_it_stands(guard: GuardClient, turn: dict[str, Any]) -> None:
    assert guard.classify("Hello.", "Sure.").severity is RiskLevel.SAFE
    assert guard.classify(messages=[user("Hello."), turn]).severity is RiskLevel.UNSAFE


def test_tools_and_developers_are_read_as_users_and_system(guard: GuardClient) -> None:
    """By Gen and by Stream: as the same turns in the three roles of the templates."""
    turns: Turns = [
        {"role": "developer", "content": "Be nice."},
        user("What is in the letter?"),
        assistant(**call({"name": "letter"})),
        {"role": "tool", "tool_call_id": "call_1", "content": "Flour."},
        {"role": "function", "name": "read", "content": [{"type": "text", "text": QUESTION}]},
    ]
    plain: Turns = [
        {"role": "system", "content": "Be nice."},
        user("What is in the letter?"),
        assistant('{"name": "letter"}'),
        user("Flour."),
        user(QUESTION),
    ]
    found = guard.classify(messages=turns)
    assert found == guard.classify(messages=plain)
    assert found.unsafe
    with guard.stream(messages=turns) as one, guard.stream(messages=plain) as other:
        assert one.prompt_verdict == other.prompt_verdict
        assert one.step(SAFE) == other.step(SAFE)


def test_what_is_not_text_is_refused_by_name(guard: GuardClient) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}, "text": "harmless"}
    for ask in (guard.classify, lambda **given: guard.stream(**given).__enter__()):
        with pytest.raises(errors.InvalidMessages, match="image_url"):
            ask(messages=[user([image])])
        with pytest.raises(errors.InvalidMessages, match="Message 1 has a field 'audio'"):
            ask(messages=[user("Hi.", audio={"data": "AAAA"})])


def long_conversation(pairs: int, last: str) -> Turns:
    turns: Turns = [{"role": "system", "content": "You are a baker."}]
    for number in range(pairs):
        turns += [user(f"{number}. {SAFE}"), assistant(SAFE)]
    return [*turns, user(last)]


def by_hand(turns: Turns, left_out: int) -> Turns:
    """The conversation without its oldest turns; the system's stays."""
    return [turns[0], *turns[1 + left_out :]]


@pytest.mark.parametrize("response", [False, True])
def test_recent_context_is_the_shortened_conversation_to_the_bit(small: GuardClient, response: bool) -> None:
    turns = long_conversation(15, QUESTION)
    if response:
        turns.append(assistant(HARMFUL))
    with pytest.raises(errors.TextTooLong):
        small.classify(messages=turns)
    found = small.classify(messages=turns, context="recent")
    assert found.unsafe
    assert 0 < found.turns_left_out < 30
    shortened = by_hand(turns, found.turns_left_out)
    assert small.classify(messages=shortened).as_dict() == found.as_dict() | {"turns_left_out": 0}
    assert small.classify(messages=shortened, context="recent").turns_left_out == 0
    with pytest.raises(errors.TextTooLong):
        small.classify(messages=by_hand(turns, found.turns_left_out - 2))


def test_a_stream_of_recent_context_has_room_for_a_response(small: GuardClient) -> None:
    turns = long_conversation(15, "How do I bake bread?")
    with pytest.raises(errors.TextTooLong), small.stream(messages=turns):
        pass
    with small.stream(messages=turns, context="recent") as stream:
        count = stream.prompt_verdict.turns_left_out
        assert 0 < count < 30
        assert json.loads(json.dumps(stream.prompt_verdict.as_dict()))["turns_left_out"] == count
        with small.stream(messages=by_hand(turns, count)) as short:
            assert short.prompt_verdict.turns_left_out == 0
            assert short.prompt_verdict.severity_probabilities == stream.prompt_verdict.severity_probabilities
            for _ in range(3):
                assert stream.step(SAFE) == short.step(SAFE)


def test_the_async_client_asks_the_same(small: GuardClient) -> None:
    turns = long_conversation(15, QUESTION)

    async def ask() -> object:
        async with AsyncGuardClient(small.url) as client:
            found = await client.classify(messages=turns, context="recent")
            windows = await client.classify(SAFE * 30, windows=True)
            async with client.stream(messages=turns, context="recent") as stream:
                return found, windows, stream.prompt_verdict

    with small.stream(messages=turns, context="recent") as stream:
        prompt = stream.prompt_verdict
    expected = small.classify(messages=turns, context="recent"), small.classify(SAFE * 30, windows=True), prompt
    assert asyncio.run(ask()) == expected


def test_the_last_turn_is_never_left_out(small: GuardClient) -> None:
    for turns in ([user("Hi."), assistant("Hello."), user(SAFE * 40)], [user(SAFE * 40), assistant("Sure.")]):
        with pytest.raises(errors.TextTooLong):
            small.classify(messages=turns, context="recent")


def ending_with(kind: str, text: str) -> dict[str, Any]:
    """What `classify` is given for a conversation whose last turn is `text`."""
    if kind == "messages":
        return {"messages": [{"role": "system", "content": "Be nice."}, user("Hi."), assistant("Hello."), user(text)]}
    return {"prompt": text} if kind == "prompt" else {"prompt": "Hello.", "response": text}


@pytest.mark.parametrize("before", [0, 3, 8, 12, 17, 23, 30])
@pytest.mark.parametrize("kind", ["prompt", "response", "messages"])
def test_harm_is_found_anywhere_in_a_text_beyond_the_context(small: GuardClient, before: int, kind: str) -> None:
    """The demo guard is small: it must be told the same more than once, and finds long texts suspicious."""
    harm = (HARMFUL if kind == "response" else QUESTION) * 16
    text = SAFE * before + harm + SAFE * (30 - before)
    with pytest.raises(errors.TextTooLong):
        small.classify(**ending_with(kind, text))
    found = small.classify(**ending_with(kind, text), windows=True)
    harmless = small.classify(**ending_with(kind, SAFE * 30), windows=True)
    assert found.unsafe
    risks = [each.severity_probabilities[RiskLevel.UNSAFE] for each in (harmless, found)]
    assert risks[0] + 0.1 < risks[1]
    assert found.windows[0].start == 0
    assert found.windows[-1].end == len(text)
    for window in found.windows:
        assert small.classify(**ending_with(kind, text[window.start : window.end])) == window.verdict
    assert found.severity is max(window.verdict.severity for window in found.windows)


def test_a_text_that_fits_is_judged_as_without_windows(small: GuardClient) -> None:
    for given in (
        {"prompt": SAFE},
        {"prompt": "Hi.", "response": HARMFUL},
        {"messages": long_conversation(1, QUESTION)},
    ):
        assert small.classify(**given, windows=True) == small.classify(**given)


def test_windows_after_turns_that_leave_no_room(small: GuardClient) -> None:
    turns = long_conversation(15, SAFE * 30)
    with pytest.raises(errors.TextTooLong, match="leave no room"):
        small.classify(messages=turns, windows=True)
    found = small.classify(messages=turns, windows=True, context="recent")
    assert len(found.windows) > 2
    assert all(window.verdict.turns_left_out for window in found.windows)


def test_a_wrong_choice_is_named(small: GuardClient) -> None:
    with pytest.raises(errors.InvalidRequest, match="recent"):
        small.classify("Hi.", context="new")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidRequest, match="windows"):
        small.classify("Hi.", windows=1)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidRequest, match="sequence_start"):
        small.stream_step("s1", text="Hi.", position=0, context="recent")


def test_a_moderation_and_a_proxy_leave_out_the_oldest_turns_when_asked(small: GuardClient) -> None:
    turns: Turns = [turn for _ in range(15) for turn in (user(QUESTION * 4), assistant(SAFE * 2))]
    turns.append(user("How do I bake bread?"))
    with pytest.raises(errors.TextTooLong):
        list(small.moderate([SAFE], messages=turns))
    confirms: tuple[Confirm | None, ...] = (None, "strict")
    for confirm in confirms:
        moderated = small.moderate([SAFE], messages=turns, context="recent", confirm=confirm)
        assert "".join(map(str, moderated)) == SAFE
        verdict = moderated.prompt_verdict
        assert verdict
        left_out = verdict.turns_left_out
        assert left_out > 10
    llm = FakeLLM(SAFE)
    body = {"model": "fake", "messages": turns}
    with Loop() as loop:
        loop.run(llm.start())
        with Proxied(loop, small.url, llm) as proxy:
            assert (
                httpx.post(f"{proxy.url}/chat/completions", json=body).json()["error"]["code"] == "guard_text_too_long"
            )
        with Proxied(loop, small.url, llm, context="recent") as proxy:
            (choice,) = httpx.post(f"{proxy.url}/chat/completions", json=body).json()["choices"]
        loop.run(llm.stop())
    assert choice["message"]["content"] == SAFE
    assert choice["guard"]["turns_left_out"] == left_out
    assert llm.asked[-1]["messages"] == turns
