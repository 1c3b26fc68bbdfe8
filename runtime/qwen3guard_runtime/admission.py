"""Who is let in to a model that answers one batch after the other: so many wait, one more is refused at once.

Triton's own `max_queue_size` does not do here: while its queue is full, Triton looks only every half second whether
the model is free again (seen with 2.51). Knows nothing of Triton, nor of what a request is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from qwen3guard_client.errors import DeadlineExceeded, GuardError, InternalError, Overloaded

T = TypeVar("T")
STUCK_S = 60.0
"""A model that works on one batch for as long is hung, not overloaded, and says so: the supervisor starts it anew."""


class Admission(Generic[T]):
    """`answer` gets up to `batch` requests at a time, in order, in a thread of its own; `refuse` the others, with why.

    Up to `waiting` wait for the running batch.
    """

    def __init__(
        self,
        answer: Callable[[list[T]], None],
        refuse: Callable[[T, GuardError], None],
        *,
        waiting: int,
        batch: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answer = answer
        self._refuse = refuse
        self._limit = waiting
        self._batch = batch
        self._clock = clock
        self._waiting: deque[tuple[T, float]] = deque()
        """With each, when its caller no longer waits."""
        self._began_s: float | None = None
        """The running batch; None while there is none."""
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def offer(self, request: T, timeout_s: float = 0.0) -> None:
        """Lets the request in, or refuses it before this returns. Its caller waits for `timeout_s`; 0: for ever."""
        with self._changed:
            now, began = self._clock(), self._began_s
            if len(self._waiting) < self._limit + (began is None):
                self._waiting.append((request, now + timeout_s if timeout_s else float("inf")))
                self._changed.notify()
                return
        if began is not None and now - began > STUCK_S:
            self._refuse(request, InternalError(f"The model has worked on one request for {now - began:.0f} s."))
        else:
            self._refuse(request, Overloaded("The server is overloaded; try again later."))

    def close(self) -> None:
        """Returns when all that was let in is answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while self._take(self._next()):
            pass

    def _take(self, batch: Sequence[tuple[T, float]]) -> bool:
        """False where there is nothing to take. A method of its own, so that nothing holds the requests afterwards."""
        now = self._clock()
        try:
            for request, until in batch:
                if until <= now:
                    self._refuse(request, DeadlineExceeded("The server had no time for the request in time."))
            if in_time := [request for request, until in batch if until > now]:
                self._answer(in_time)
        except Exception as error:  # of sending an answer; the next request shall have its own all the same
            logging.getLogger(__name__).error("answering failed: %s", type(error).__name__)
        return bool(batch)

    def _next(self) -> list[tuple[T, float]]:
        """The next batch; empty when this is closed and nobody waits."""
        with self._changed:
            self._began_s = None
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            self._began_s = self._clock()
            return batch
