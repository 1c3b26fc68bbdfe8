"""A queue for a model that answers one batch after the other. When it is full, further requests are refused at once.

Triton's own `max_queue_size` cannot be used: while its queue is full, Triton checks only every half second whether the
model is free again (seen with 2.51). This module knows nothing of Triton, and does not look into requests.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from qwen3guard_contract.errors import Abandoned, DeadlineExceeded, GuardError, InternalError, Overloaded

T = TypeVar("T")
CALM_S = 1.0
"""For this time after a refusal, only one request may wait. If more requests come than can be answered, a long queue is
always full: every request then waits for its whole length, and no more requests are answered than with a short one."""
STUCK_S = 60.0
"""A model that has worked on one batch for this time is hung, not overloaded. The error says so, and the supervisor
starts the server again."""


class Admission(Generic[T]):
    """Calls `answer` with up to `batch` requests at a time, in order, in its own thread. Calls `refuse` with each other
    request and its error.

    Up to `waiting` requests wait while a batch is being answered. If there are more, all but the first are refused;
    then only one may wait, until CALM_S have passed without a refusal. A request for which `is_abandoned` is true when
    its turn comes is refused, because nobody waits for its answer.
    """

    def __init__(
        self,
        answer: Callable[[list[T]], None],
        refuse: Callable[[T, GuardError], None],
        *,
        waiting: int,
        batch: int = 1,
        is_abandoned: Callable[[T], bool] = lambda _: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answer = answer
        self._refuse = refuse
        self._limit = waiting
        self._batch = batch
        self._is_abandoned = is_abandoned
        self._clock = clock
        self._waiting: deque[tuple[T, float]] = deque()
        """Requests, each with the time until which its caller waits."""
        self._began_s: float | None = None
        """When the current batch began; None while there is none."""
        self._refused_s = float("-inf")
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def offer(self, request: T, timeout_s: float = 0.0) -> None:
        """Queues the request, or refuses it before this returns. Its caller waits for `timeout_s`; with 0, for ever."""
        with self._changed:
            now_s, began_s = self._clock(), self._began_s
            self._waiting.append((request, now_s + timeout_s if timeout_s else float("inf")))
            is_idle = began_s is None  # then the worker takes the first waiting request at once
            fewest = min(self._limit, 1) + is_idle
            most = self._limit + is_idle if now_s - self._refused_s > CALM_S else fewest
            refused = []
            if len(self._waiting) > most:
                self._refused_s = now_s
                refused = [self._waiting.pop()[0] for _ in range(len(self._waiting) - fewest)]
            self._changed.notify()
        error: GuardError = Overloaded("The server is overloaded; try again later.")
        if began_s is not None and now_s - began_s > STUCK_S:
            error = InternalError(f"The model has worked on one request for {now_s - began_s:.0f} s.")
        for refused_request in refused:
            with _logging_errors():
                self._refuse(refused_request, error)

    def close(self) -> None:
        """Returns when all queued requests are answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while self._answer_batch(self._next_batch()):
            pass

    def _answer_batch(self, batch: Sequence[tuple[T, float]]) -> bool:
        """Answers the requests whose callers still wait, and refuses the others. Returns False if there are none.

        It is a method so that the thread's frame does not keep the requests alive after they are answered.
        """
        now_s = self._clock()
        awaited = []
        for request, until_s in batch:
            error: GuardError | None = None
            if until_s <= now_s:
                error = DeadlineExceeded("The server did not come to the request in time.")
            elif self._is_abandoned(request):
                error = Abandoned("Its caller has hung up.")
            else:
                awaited.append(request)
            if error:
                with _logging_errors():
                    self._refuse(request, error)
        if awaited:
            with _logging_errors():
                self._answer(awaited)
        return bool(batch)

    def _next_batch(self) -> list[tuple[T, float]]:
        """Waits for the next batch. It is empty if this is closed and no request waits."""
        with self._changed:
            self._began_s = None
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            self._began_s = self._clock()
            return batch


@contextlib.contextmanager
def _logging_errors() -> Iterator[None]:
    """Logs an error of sending one answer, so that the thread goes on and the next request is answered."""
    try:
        yield
    except Exception as error:
        logging.getLogger(__name__).error("answering failed: %s", type(error).__name__)
