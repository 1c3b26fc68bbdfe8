"""Who is let in where there is more work than room, and who is refused: without a server."""

from __future__ import annotations

import threading

from qwen3guard_contract.errors import Abandoned, DeadlineExceeded, GuardError, InternalError, Overloaded
from qwen3guard_runtime.triton.admission import CALM_S, STUCK_S, Admission


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


def test_nothing_is_computed_for_a_caller_who_has_hung_up() -> None:
    model = Model(waiting=2)
    model.admission._is_abandoned = lambda request: request == "gone"
    model.busy()
    model.admission.offer("gone")
    model.admission.offer("patient")
    model.end()
    assert model.refused == {"gone": Abandoned}
    assert model.answered == [["running"], ["patient"]]
