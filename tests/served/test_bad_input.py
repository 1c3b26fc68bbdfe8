"""Every bad input through the live server: its own error, one sentence, and the others of its batch go on."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from qwen3guard_client import GuardClient, Policy, Thresholds
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import errors, wire
from qwen3guard_contract.errors import GuardError

SECRET = "kumquat-7731"


def raw(guard: GuardClient, model: wire.Model, values: dict[wire.Tensor, Any], **sequence: Any) -> Any:
    """A request that the client library itself would refuse to build."""
    return guard.send(Call(model, values, model.outputs[:1], lambda reply: reply(model.outputs[0]), **sequence))


def opened(guard: GuardClient) -> tuple[str, int]:
    session = str(uuid.uuid4())
    return session, guard.stream_step(session, prompt="Hello there.", start=True).length


def opened_by(guard: GuardClient, thresholds: bytes) -> Any:
    values = {wire.PROMPT: [b"Hi."], wire.POSITION: [0], wire.THRESHOLDS: [thresholds]}
    return raw(guard, wire.STREAM_STEP, values, session=str(uuid.uuid4()), start=True)


Bad = Callable[[GuardClient], object]
CLASSIFY: dict[str, tuple[Bad, type[GuardError]]] = {
    "empty prompt": (lambda g: g.classify(""), errors.EmptyText),
    "blank prompt": (lambda g: g.classify(" \n "), errors.EmptyText),
    "missing prompt": (lambda g: raw(g, wire.CLASSIFY, {wire.RESPONSE: b"x"}), errors.EmptyText),
    "empty response": (lambda g: g.classify("Hi.", ""), errors.EmptyText),
    "no messages": (lambda g: g.classify(messages=[]), errors.EmptyText),
    "message without text": (lambda g: g.classify(messages=[{"role": "user"}]), errors.EmptyText),
    "bytes that are not UTF-8": (lambda g: raw(g, wire.CLASSIFY, {wire.PROMPT: b"\xff"}), errors.InvalidEncoding),
    "lone surrogate": (lambda g: g.classify("\ud800"), errors.InvalidEncoding),
    "escaped lone surrogate": (
        lambda g: g.classify(messages='[{"role": "user", "content": "\\ud800"}]'),
        errors.InvalidEncoding,
    ),
    "not JSON": (lambda g: g.classify(messages=f"[{SECRET}"), errors.InvalidMessages),
    "deep JSON": (lambda g: g.classify(messages="[" * 50_000), errors.InvalidMessages),
    "no list": (lambda g: g.classify(messages='{"role": "user"}'), errors.InvalidMessages),
    "image part": (
        lambda g: g.classify(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        errors.InvalidMessages,
    ),
    "unknown role": (lambda g: g.classify(messages=[{"role": SECRET, "content": "x"}]), errors.UnknownRole),
    "system last": (
        lambda g: g.classify(messages=[{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]),
        errors.LastRole,
    ),
    "a field that is not read": (
        lambda g: g.classify(messages=[{"role": "user", "content": "x", "tool_calls": [{"function": SECRET}]}]),
        errors.InvalidMessages,
    ),
    "an image beside its text": (
        lambda g: g.classify(
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": SECRET, "text": "x"}]}]
        ),
        errors.InvalidMessages,
    ),
    "longer than the context": (lambda g: g.classify("word " * 5000), errors.TextTooLong),
    "a megabyte": (lambda g: g.classify("x" * 1_000_000), errors.TextTooLong),
    "just too long": (lambda g: g.classify("a b " * 1010), errors.TextTooLong),
    "messages and a prompt": (
        lambda g: raw(g, wire.CLASSIFY, {wire.PROMPT: b"x", wire.MESSAGES: b"[]"}),
        errors.InvalidRequest,
    ),
    "ids outside the vocabulary": (
        lambda g: raw(g, wire.GEN_GUARD, {wire.INPUT_IDS: [1, 10**9], wire.RESPONSE_MODE: [False]}),
        errors.TokenOutOfRange,
    ),
    "negative ids": (
        lambda g: raw(g, wire.GEN_GUARD, {wire.INPUT_IDS: [-1], wire.RESPONSE_MODE: [False]}),
        errors.TokenOutOfRange,
    ),
    "no ids": (lambda g: raw(g, wire.GEN_GUARD, {wire.INPUT_IDS: [], wire.RESPONSE_MODE: [False]}), errors.EmptyText),
}
STREAM: dict[str, tuple[Bad, type[GuardError]]] = {
    "empty prompt": (lambda g: g.stream_step("e1", prompt="", start=True), errors.EmptyText),
    "missing prompt": (
        lambda g: raw(g, wire.STREAM_STEP, {wire.POSITION: [0]}, session="e2", start=True),
        errors.EmptyText,
    ),
    "assistant last": (
        lambda g: g.stream_step("e3", messages=[{"role": "assistant", "content": "x"}], start=True),
        errors.LastRole,
    ),
    "system last": (
        lambda g: g.stream_step("e4", messages=[{"role": "system", "content": "x"}], start=True),
        errors.LastRole,
    ),
    "a field that is not read": (
        lambda g: g.stream_step("e7", messages=[{"role": "user", "content": "x", "notes": SECRET}], start=True),
        errors.InvalidMessages,
    ),
    "start at a position": (
        lambda g: g.stream_step("e5", prompt="x", start=True, position=3),
        errors.PositionOutOfRange,
    ),
    "prompt too long": (lambda g: g.stream_step("e6", prompt="word " * 5000, start=True), errors.TextTooLong),
    "thresholds of nobody": (
        lambda g: opened_by(g, b'{"categories": {"%s": 1}}' % SECRET.encode()),
        errors.InvalidRequest,
    ),
    "a threshold that is no number": (lambda g: opened_by(g, b'{"default": "kumquat-7731"}'), errors.InvalidRequest),
    "a threshold that is NaN": (lambda g: opened_by(g, b'{"default": NaN}'), errors.InvalidRequest),
    "deep thresholds": (lambda g: opened_by(g, b'{"categories": ' * 100), errors.InvalidRequest),
    "thresholds without an end": (lambda g: opened_by(g, b" " * 1_000_000), errors.InvalidRequest),
    "a step without a session": (lambda g: g.stream_step(0, text="x"), errors.InvalidRequest),
    "a step of an unknown session": (lambda g: g.stream_step(str(uuid.uuid4()), text="x"), errors.SessionLost),
}
STEP: dict[str, tuple[Callable[[GuardClient, str, int], object], type[GuardError]]] = {
    "neither text nor ids": (lambda g, s, n: g.stream_step(s, position=n), errors.EmptyText),
    "empty text": (lambda g, s, n: g.stream_step(s, text="", position=n), errors.EmptyText),
    "no ids": (lambda g, s, n: g.stream_step(s, token_ids=[], position=n), errors.EmptyText),
    "text and ids": (lambda g, s, n: g.stream_step(s, text="x", token_ids=[1], position=n), errors.InvalidRequest),
    "a second prompt": (
        lambda g, s, n: g.stream_step(s, messages=[{"role": "user", "content": "x"}], position=n),
        errors.InvalidRequest,
    ),
    "an empty next turn": (lambda g, s, n: g.stream_step(s, prompt=" ", position=n), errors.EmptyText),
    "a next turn before the response": (
        lambda g, s, n: g.stream_step(s, prompt="x", position=n - 1),
        errors.PositionOutOfRange,
    ),
    "a next turn beyond the context": (
        lambda g, s, n: g.stream_step(s, prompt="word " * 2040, position=n),
        errors.TextTooLong,
    ),
    "bytes that are not UTF-8": (
        lambda g, s, n: raw(g, wire.STREAM_STEP, {wire.TEXT: b"\xc3", wire.POSITION: [n]}, session=s),
        errors.InvalidEncoding,
    ),
    "thresholds too late": (
        lambda g, s, n: g.stream_step(s, text="x", position=n, policy=Policy(thresholds=Thresholds())),
        errors.InvalidRequest,
    ),
    "ids outside the vocabulary": (
        lambda g, s, n: g.stream_step(s, token_ids=[10**6], position=n),
        errors.TokenOutOfRange,
    ),
    "negative ids": (lambda g, s, n: g.stream_step(s, token_ids=[-5], position=n), errors.TokenOutOfRange),
    "ids beyond 64 bits": (lambda g, s, n: g.stream_step(s, token_ids=[2**70], position=n), errors.TokenOutOfRange),
    "negative position": (lambda g, s, _: g.stream_step(s, text="x", position=-1), errors.PositionOutOfRange),
    "a gap": (lambda g, s, n: g.stream_step(s, text="x", position=n + 99), errors.PositionOutOfRange),
    "a position beyond 32 bits": (
        lambda g, s, _: g.stream_step(s, text="x", position=2**40),
        errors.PositionOutOfRange,
    ),
    "longer than the context": (lambda g, s, n: g.stream_step(s, text="word " * 5000, position=n), errors.TextTooLong),
}


def fails(run: Callable[[], object], expected: type[GuardError]) -> None:
    with pytest.raises(GuardError) as found:
        run()
    assert type(found.value) is expected
    sentence = str(found.value)
    assert 10 < len(sentence) < 250
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert SECRET not in sentence


@pytest.mark.parametrize("name", CLASSIFY)
def test_classify(guard: GuardClient, name: str) -> None:
    bad, expected = CLASSIFY[name]
    fails(lambda: bad(guard), expected)


@pytest.mark.parametrize("name", STREAM)
def test_opening_a_stream(guard: GuardClient, name: str) -> None:
    bad, expected = STREAM[name]
    fails(lambda: bad(guard), expected)


@pytest.mark.parametrize("name", STEP)
def test_a_step_fails_alone_and_loses_nothing(guard: GuardClient, name: str) -> None:
    bad, expected = STEP[name]
    session, length = opened(guard)
    before = guard.stream_step(session, text="Mix flour", position=length)
    fails(lambda: bad(guard, session, length), expected)
    assert guard.stream_step(session, text="Mix flour", position=length) == before
    guard.stream_step(session, position=length, end=True)


def test_bad_requests_leave_the_good_ones_of_their_batch_alone(guard: GuardClient) -> None:
    expected = guard.classify("How do I bake bread?")
    wrong = [bad for bad, _ in CLASSIFY.values()]
    good: list[object] = []

    def ask(number: int) -> None:
        with GuardClient(guard.url) as mine:
            for turn in range(6):
                if (number + turn) % 2:
                    with pytest.raises(GuardError):
                        wrong[(number * 6 + turn) % len(wrong)](mine)
                else:
                    good.append(mine.classify("How do I bake bread?"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(good) == 24
    assert all(verdict == expected for verdict in good)


def test_the_log_holds_no_text_and_no_session(guard: GuardClient, server: Any) -> None:
    session = str(uuid.uuid4())
    guard.classify(f"What is a {SECRET}?")
    guard.stream_step(session, prompt=f"What is a {SECRET}?", start=True)
    with pytest.raises(GuardError):
        guard.stream_step(session, text=SECRET, position=10**6)
    guard.stream_step(session, position=1, end=True)
    assert SECRET not in server.log
    assert session not in server.log


def test_unreachable_late_and_not_served(guard: GuardClient) -> None:
    with GuardClient("127.0.0.1:9", timeout_s=5) as nobody:
        fails(lambda: nobody.classify("Hi."), errors.Unreachable)
    fails(lambda: guard.classify("Hi.", timeout_s=1e-4), errors.DeadlineExceeded)
    unknown = wire.Model("nobody", wire.CLASSIFY.inputs, wire.CLASSIFY.outputs)
    fails(lambda: raw(guard, unknown, {wire.PROMPT: b"x"}), errors.GuardNotServed)


def test_a_client_cannot_unload_models_or_map_memory(guard: GuardClient) -> None:
    connection = guard._connection
    for attack in (
        lambda: connection.unload_model("classify"),
        lambda: connection.load_model("classify"),
        lambda: connection.register_system_shared_memory("x", "/dev/shm/x", 8),
        lambda: connection.update_trace_settings(settings={"trace_level": "TENSORS"}),
    ):
        with pytest.raises(Exception, match="restricted"):
            attack()
