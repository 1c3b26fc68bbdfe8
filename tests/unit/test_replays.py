"""Streams that many clients replay at once: what a server admits, and how the clients come back. Without a server."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from qwen3guard_client.stream.aio import AsyncStream
from qwen3guard_client.stream.state import StreamState
from qwen3guard_client.stream.stream import Stream
from qwen3guard_client.transport import tasks, threads
from qwen3guard_client.transport.calls import Call
from qwen3guard_client.transport.connection import RETRY_S
from qwen3guard_client.transport.retries import LONGEST_RETRY_S, Pauses
from qwen3guard_contract import errors, wire
from qwen3guard_runtime.stream.replays import Replays
from qwen3guard_runtime.stream.session import REPLAY_GAP_S
from qwen3guard_runtime.stream.steps import Step, StepReply
from qwen3guard_runtime.telemetry.metrics import StreamMetrics
from support.fake_guard import FakeGuard, Script
from support.token_sum import Bench


def bench(replay_s: float) -> Bench:
    """At first, an eighth of `replay_s` is expected for each."""
    made = Bench(slots=20)
    made.sessions._replays = Replays(replay_s, StreamMetrics())
    return made


def begun(server: Bench, *names: str) -> list[bool]:
    """Which of these replays are admitted."""
    return [isinstance(server.step(name, [1], start=True, replay=True), StepReply) for name in names]


def test_so_many_replays_are_admitted_at_once_and_new_streams_beside_them() -> None:
    server = bench(2.0)
    assert begun(server, *"abcdefghi") == [True] * 8 + [False]
    server.ok("new", [1], start=True)
    server.ok("a", [2] * 30, 1, replay=True)
    assert begun(server, "i") == [False]
    server.ok("a", [3], 31)  # the step that found the session lost: the replay is over, and took no time
    server.ok("b", [], 1, end=True)
    assert begun(server, *"ijklmnop") == [True] * 7 + [False]  # twice a fifth less is expected of each


@pytest.mark.parametrize(("pass_s", "at_once"), [(0.001, 18), (5.0, 2)])
def test_how_many_follows_from_what_the_last_ones_took(pass_s: float, at_once: int) -> None:
    """As many as there are slots of short ones, and two however long they take."""
    server = bench(2.0)
    server.graph.pass_s = pass_s
    for number in range(20):
        name = str(number)
        server.ok(name, [1], start=True, replay=True)
        server.ok(name, [2], 1)
        server.ok(name, [], 2, end=True)
    server.graph.pass_s = 0.0
    assert begun(server, *map(str, range(18))).count(True) == at_once


def test_a_replay_that_nobody_goes_on_with_makes_room_for_another() -> None:
    server = bench(0.0)
    assert begun(server, *"abc") == [True, True, False]
    server.clock[0] += REPLAY_GAP_S / 2
    assert begun(server, "c") == [False]
    server.clock[0] += REPLAY_GAP_S / 2
    assert begun(server, "c") == [True]


def test_replays_are_taken_one_after_the_other_and_others_between_them() -> None:
    server = bench(2.0)
    server.graph.pass_s = 0.4  # a turn of 1 s has three chunks
    writes = {name: Step(name, np.array([2] * 100, np.int64), 1, replay=name != "other") for name in "cab"}
    writes["other"] = Step("other", np.array([2] * 100, np.int64), 1)
    for name, step in writes.items():
        server.ok(name, [1], start=True, replay=step.replay)
    server.sessions.steps([writes["a"]])  # it asks first
    ended: list[str] = []
    while len(ended) < len(writes):
        names = [name for name in writes if name not in ended]
        replies = server.sessions.steps([writes[name] for name in names])
        left = {name: reply.pending for name, reply in zip(names, replies, strict=True) if isinstance(reply, StepReply)}
        assert sum(0 < left.get(name, 0) < 100 for name in "abc") <= 1
        ended += [name for name in names if not left[name]]
    assert ended in (["a", "other", "c", "b"], ["other", "a", "c", "b"], ["a", "c", "other", "b"])


def test_pauses_grow_and_differ_and_end_before_the_time_is_over() -> None:
    drawn = [[pauses.next_s(60) or 0 for _ in range(8)] for pauses in (Pauses() for _ in range(50))]
    for number in range(8):
        longest = min(RETRY_S * 2**number, LONGEST_RETRY_S)
        assert all(longest / 2 <= each[number] <= longest for each in drawn)
        assert len({each[number] for each in drawn}) > 40
    assert Pauses().next_s(RETRY_S) is None
    assert Pauses().next_s(1.2 * RETRY_S) == pytest.approx(0.2 * RETRY_S)


class FullGuard(FakeGuard):
    """Admits no replay until it has put some off. `told` says of each call but an END whether it opens, and whether it
    is marked."""

    put_off = 3

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.told: list[tuple[bool, bool]] = []

    def answer(self, call: Call[Any]) -> Any:
        if not call.end:
            self.told.append((call.start, wire.REPLAY in (call.arguments(1.0)["parameters"] or {})))
        if call.start and call.replay and self.put_off:
            self.put_off -= 1
            raise errors.Overloaded("Later.")
        return super().answer(call)


def stream_of(guard: FakeGuard, timeout_s: float) -> Stream:
    return Stream(guard.send, StreamState("Hi.", None, None), timeout_s, threads.InFlight(lambda: None))


PIECES = ("ab", "cd", "ef", "gh")
SCRIPT = Script(tuple((piece, False) for piece in PIECES), lost=frozenset({3}))


def test_a_replay_that_is_put_off_is_tried_again_and_marked() -> None:
    guard = FullGuard(SCRIPT)
    with stream_of(guard, 30.0) as stream:
        for piece in PIECES:
            stream.step(piece)
    assert guard.put_off == 0
    assert len(stream.verdicts) == len(PIECES)
    opened, written = (True, False), (False, False)
    assert guard.told == [opened, *[written] * 3, *[(True, True)] * 4, (False, True), *[written] * 2]


def test_a_task_tries_it_again_too() -> None:
    guard = FullGuard(SCRIPT)

    async def judge() -> int:
        async with AsyncStream(
            guard.asend, StreamState("Hi.", None, None), 30.0, tasks.InFlight(lambda: None)
        ) as stream:
            for piece in PIECES:
                await stream.step(piece)
        return len(stream.verdicts)

    assert asyncio.run(judge()) == len(PIECES)
    assert guard.put_off == 0


def test_a_replay_is_given_up_within_the_streams_time_out() -> None:
    guard = FullGuard(SCRIPT)
    guard.put_off = 10**6
    stream = stream_of(guard, 0.5)
    stream.__enter__()
    stream.step("ab")
    stream.step("cd")
    with pytest.raises(errors.Overloaded):
        stream.step("ef")


def test_a_new_stream_that_is_refused_is_not_tried_again() -> None:
    guard = FullGuard(SCRIPT)
    guard.failure = errors.Overloaded("Full.")
    with pytest.raises(errors.Overloaded), stream_of(guard, 30.0):
        pass
    assert guard.told == [(True, False)]
