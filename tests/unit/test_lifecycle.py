"""The states of a supervised server, with a clock of the test's own."""

from __future__ import annotations

import pytest
from qwen3guard_server.lifecycle import Cause, Lifecycle, Limits, ServerState

LIMITS = Limits(canary_s=10, again_s=1, misses=2, pause_s=1, longest_pause_s=8, restarts=8, window_s=100, refusals=3)
MODELS = ("gen_guard", "stream_guard")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lifecycle(clock: Clock) -> Lifecycle:
    """Of a server that is ready."""
    loading = Lifecycle(MODELS, LIMITS, clock)
    answer(loading)
    assert loading.state is ServerState.READY
    return loading


def answer(lifecycle: Lifecycle) -> None:
    for model in MODELS:
        lifecycle.answered(model)


def load(lifecycle: Lifecycle, clock: Clock) -> float:
    """Starts it again as soon as it may be, and returns how long that was."""
    began = clock.now_s
    while not lifecycle.may_load():
        clock.now_s += 0.5
    lifecycle.load()
    assert lifecycle.state is ServerState.LOADING
    return clock.now_s - began


def test_it_is_ready_when_every_model_has_answered(clock: Clock) -> None:
    lifecycle = Lifecycle(MODELS, LIMITS, clock)
    assert (lifecycle.state, lifecycle.due()) == (ServerState.LOADING, ["gen_guard", "stream_guard"])
    lifecycle.missed("gen_guard")
    lifecycle.answered("stream_guard")
    assert (lifecycle.state, lifecycle.due()) == (ServerState.LOADING, ["gen_guard"])
    lifecycle.answered("gen_guard")
    assert (lifecycle.state, lifecycle.due()) == (ServerState.READY, [])


def test_each_model_has_its_own_health(lifecycle: Lifecycle, clock: Clock) -> None:
    """The answers of one say nothing of the other."""
    clock.now_s += LIMITS.canary_s
    assert lifecycle.due() == ["gen_guard", "stream_guard"]
    lifecycle.missed("stream_guard")
    lifecycle.answered("gen_guard")
    assert (lifecycle.state, lifecycle.due()) == (ServerState.SUSPECT, [])
    clock.now_s += LIMITS.again_s
    assert lifecycle.due() == ["stream_guard"]
    lifecycle.answered("gen_guard")
    assert lifecycle.state is ServerState.SUSPECT
    lifecycle.missed("stream_guard")
    assert lifecycle.is_silent("stream_guard")
    assert not lifecycle.is_silent("gen_guard")


def test_a_suspect_that_answers_is_ready_again(lifecycle: Lifecycle) -> None:
    for _ in range(5):
        lifecycle.missed("stream_guard")
        assert lifecycle.state is ServerState.SUSPECT
        lifecycle.answered("stream_guard")
        assert lifecycle.state is ServerState.READY


def test_pauses_grow_and_start_anew_when_the_failures_are_long_ago(lifecycle: Lifecycle, clock: Clock) -> None:
    """Whether it was ready in between makes no difference: it is the count over time that tells."""
    pauses = []
    for number in range(LIMITS.restarts - 1):
        lifecycle.failed(Cause.INTERRUPTED)
        assert lifecycle.state is ServerState.RESTARTING
        pauses.append(load(lifecycle, clock))
        if number % 2:
            answer(lifecycle)
    assert pauses == [0, 1, 2, 4, 8, 8, 8]
    clock.now_s += LIMITS.window_s + 1
    assert lifecycle.failures == 0
    lifecycle.failed(Cause.INTERRUPTED)
    assert load(lifecycle, clock) == 0


def test_it_is_given_up_after_many_failures_in_a_while(lifecycle: Lifecycle, clock: Clock) -> None:
    for _ in range(LIMITS.restarts - 1):
        lifecycle.failed(Cause.INTERRUPTED)
        load(lifecycle, clock)
        answer(lifecycle)
    lifecycle.failed()
    assert (lifecycle.state, lifecycle.may_load(), lifecycle.due()) == (ServerState.GIVEN_UP, False, [])


def test_failures_that_come_seldom_end_nothing(lifecycle: Lifecycle, clock: Clock) -> None:
    for _ in range(10 * LIMITS.restarts):
        lifecycle.failed()
        load(lifecycle, clock)
        answer(lifecycle)
        clock.now_s += LIMITS.window_s / (LIMITS.restarts - 1)
    assert lifecycle.state is ServerState.READY


def test_a_server_that_refuses_to_load_is_given_up_soon(lifecycle: Lifecycle, clock: Clock) -> None:
    lifecycle.failed(Cause.INTERRUPTED)
    for number in range(LIMITS.refusals):
        load(lifecycle, clock)
        lifecycle.failed(Cause.REFUSED)
        assert (lifecycle.state is ServerState.GIVEN_UP) == (number == LIMITS.refusals - 1)


def test_refusals_count_in_a_row(lifecycle: Lifecycle, clock: Clock) -> None:
    for _ in range(2):
        for cause in (Cause.REFUSED, Cause.REFUSED, Cause.INTERRUPTED):
            lifecycle.failed(cause)
            load(lifecycle, clock)
    answer(lifecycle)
    assert lifecycle.state is ServerState.READY


@pytest.mark.parametrize("cause", list(Cause))
def test_the_first_start_may_fail_by_a_signal_alone(clock: Clock, cause: Cause) -> None:
    lifecycle = Lifecycle(MODELS, LIMITS, clock)
    lifecycle.failed(cause)
    assert lifecycle.state is (ServerState.RESTARTING if cause is Cause.INTERRUPTED else ServerState.GIVEN_UP)


def test_health_begins_anew_with_each_start(lifecycle: Lifecycle, clock: Clock) -> None:
    lifecycle.missed("stream_guard")
    lifecycle.failed()
    assert lifecycle.due() == []
    load(lifecycle, clock)
    answer(lifecycle)
    assert lifecycle.state is ServerState.READY
    lifecycle.missed("stream_guard")
    assert not lifecycle.is_silent("stream_guard")
