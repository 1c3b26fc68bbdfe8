"""More work than there is room for: who is let in, who is refused, with what, and that both are counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import free_port, serve, stream_repository, wait_ready
from overload import changed, counted
from qwen3guard_client import Classification, GuardClient
from qwen3guard_contract.errors import DeadlineExceeded, GuardError, InternalError, Overloaded
from qwen3guard_runtime.triton.admission import CALM_S, STUCK_S, Admission
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings


class Model:
    """Answers a batch when it is told to; keeps what was answered and refused."""

    def __init__(self, waiting: int, batch: int = 1) -> None:
        self.now = 0.0
        self.answered: list[list[str]] = []
        self.refused: dict[str, type[GuardError]] = {}
        self.running = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.admission = Admission(self._answer, self._refuse, waiting=waiting, batch=batch, clock=lambda: self.now)

    def _answer(self, requests: list[str]) -> None:
        self.running.release()
        self.go_on.acquire()
        if "bad" in requests:
            raise ValueError
        self.answered.append(requests)

    def _refuse(self, request: str, error: GuardError) -> None:
        if request == "bad":
            raise ValueError
        self.refused[request] = type(error)

    def busy(self) -> Model:
        self.admission.offer("running")
        self.running.acquire()
        return self

    def end(self) -> None:
        for _ in range(10):
            self.go_on.release()
        self.admission.close()


def test_so_many_wait_and_one_more_is_refused_before_offer_returns() -> None:
    model = Model(waiting=3).busy()
    for name in ("second", "third", "fourth"):
        model.admission.offer(name)
    assert model.refused == {}
    model.admission.offer("fifth")
    assert "fifth" in model.refused
    model.end()


def test_a_queue_that_overflows_is_cut_to_one_until_nobody_was_refused_for_a_while() -> None:
    model = Model(waiting=3).busy()
    for name in ("second", "third", "fourth", "fifth", "sixth"):
        model.admission.offer(name)
    assert model.refused == dict.fromkeys(("third", "fourth", "fifth", "sixth"), Overloaded)
    model.now = CALM_S + 0.1
    for name in ("seventh", "eighth"):
        model.admission.offer(name)
    assert len(model.refused) == 4
    model.end()
    assert model.answered == [["running"], ["second"], ["seventh"], ["eighth"]]


def test_without_room_to_wait_one_at_a_time_is_let_in() -> None:
    model = Model(waiting=0).busy()
    model.admission.offer("second")
    assert model.refused == {"second": Overloaded}
    model.go_on.release()
    while "third" not in model.refused and not model.running.acquire(timeout=0.01):
        model.refused.pop("third", None)
        model.admission.offer("third")
    model.end()
    assert model.answered == [["running"], ["third"]]


def test_what_waits_together_is_a_batch() -> None:
    model = Model(waiting=3, batch=2).busy()
    for name in ("second", "third", "fourth"):
        model.admission.offer(name)
    model.end()
    assert model.answered == [["running"], ["second", "third"], ["fourth"]]


def test_nothing_is_computed_for_a_caller_who_no_longer_waits() -> None:
    model = Model(waiting=2).busy()
    model.admission.offer("hasty", timeout_s=5)
    model.admission.offer("patient")
    model.now = 6
    model.end()
    assert model.refused == {"hasty": DeadlineExceeded}
    assert model.answered == [["running"], ["patient"]]


def test_a_hung_model_does_not_pass_for_an_overloaded_one() -> None:
    """The supervisor leaves an overloaded server alone."""
    model = Model(waiting=0).busy()
    model.now = STUCK_S + 1
    model.admission.offer("second")
    assert model.refused == {"second": InternalError}
    model.end()


def test_a_refusal_that_cannot_be_sent_leaves_the_others_theirs() -> None:
    model = Model(waiting=2).busy()
    for name in ("second", "third", "bad"):
        model.admission.offer(name)
    assert model.refused == {"third": Overloaded}
    model.end()


def test_an_answer_that_fails_does_not_take_the_next_one_along() -> None:
    model = Model(waiting=2).busy()
    model.admission.offer("bad")
    model.admission.offer("good")
    model.end()
    assert model.answered == [["running"], ["good"]]


def test_a_crowd_is_answered_rightly_or_refused_and_the_refused_are_counted(repository: Path, tmp_path: Path) -> None:
    models = changed(repository, tmp_path, None, pass_ms=300)
    metrics = free_port()
    with EmbeddedServer(ServerSettings(models, grpc_port=free_port(), metrics_port=metrics, load_s=120)) as server:
        wait_ready(server)
        with GuardClient(server.url) as guard, ThreadPoolExecutor(12) as crowd:
            alone = guard.classify("How do I bake bread?")
            found = list(crowd.map(lambda _: outcome(guard), range(36)))
            kinds = Counter(type(each) for each in found)
            assert set(kinds) == {Classification, Overloaded}
            answers = [each for each in found if isinstance(each, Classification)]
            assert all(each.severity_probabilities == alone.severity_probabilities for each in answers)
            assert guard.classify("How do I bake bread?").severity is alone.severity
        until = time.monotonic() + 10
        while sum(counted(metrics).values()) < kinds[Overloaded] and time.monotonic() < until:
            time.sleep(0.1)
        assert sum(counted(metrics).values()) == kinds[Overloaded]


def outcome(guard: GuardClient) -> Classification | GuardError:
    try:
        return guard.classify("How do I bake bread?")
    except GuardError as error:
        return error


def test_a_request_whose_time_runs_out_while_it_waits_gets_an_error(repository: Path, tmp_path: Path) -> None:
    models = changed(repository, tmp_path, None, pass_ms=1500)
    with serve(models) as server, GuardClient(server.url) as guard, ThreadPoolExecutor(1) as other:
        server.wait_ready(lambda: canary.check(guard, server.manifests))
        first = other.submit(guard.classify, "How do I bake bread?")
        time.sleep(0.5)
        with pytest.raises(DeadlineExceeded):
            guard.classify("How do I bake bread?", timeout_s=0.3)
        assert first.result().severity is guard.classify("How do I bake bread?").severity


def test_newcomers_are_refused_and_open_streams_go_on(repository: Path, tmp_path: Path) -> None:
    with serve(stream_repository(repository, tmp_path / "r", slots=2)) as server, GuardClient(server.url) as guard:
        wait_ready(server)
        with guard.stream("Hello.") as one, guard.stream("Hello.") as other:
            for _ in range(3):
                with pytest.raises(Overloaded):
                    guard.stream_step("newcomer", prompt="Hello.", start=True)
                assert one.step("Mix flour.").tokens == other.step("Mix flour.").tokens
        assert guard.stream_step("newcomer", prompt="Hello.", start=True, end=True).prompt_verdict
