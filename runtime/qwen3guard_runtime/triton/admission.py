"""Who is let in to a model that answers one batch after the other: so many wait, one more is refused at once.

Triton's own `max_queue_size` does not do here: while its queue is full, Triton looks only every half second whether
the model is free again (seen with 2.51). Knows nothing of Triton, nor of what a request is.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from qwen3guard_contract.errors import DeadlineExceeded, GuardError, InternalError, Overloaded

T = TypeVar("T")
CALM_S = 1.0
"""For so long after a refusal one request may wait and no more. Where more come than can be answered, a long queue is
always full: it delays everybody by its length, and not one request more is answered."""
STUCK_S = 60.0
"""A model that works on one batch for as long is hung, not overloaded, and says so: the supervisor starts it anew."""


class Admission(Generic[T]):
    """`answer` gets up to `batch` requests at a time, in order, in a thread of its own; `refuse` the others, with why.

    Up to `waiting` wait for the running batch; where they are too many, all but the first are refused, until `CALM_S`
    have passed without a refusal.
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
        self._refused_s = float("-inf")
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def offer(self, request: T, timeout_s: float = 0.0) -> None:
        """Lets the request in, or refuses it before this returns. Its caller waits for `timeout_s`; 0: for ever."""
        with self._changed:
            now, began = self._clock(), self._began_s
            self._waiting.append((request, now + timeout_s if timeout_s else float("inf")))
            idle = began is None  # and will take the first at once
            least = min(self._limit, 1) + idle
            refused = []
            if len(self._waiting) > (self._limit + idle if now - self._refused_s > CALM_S else least):
                self._refused_s = now
                refused = [self._waiting.pop()[0] for _ in range(len(self._waiting) - least)]
            self._changed.notify()
        error: GuardError = Overloaded("The server is overloaded; try again later.")
        if began is not None and now - began > STUCK_S:
            error = InternalError(f"The model has worked on one request for {now - began:.0f} s.")
        for each in refused:
            with _logged():
                self._refuse(each, error)

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
        for request, until in batch:
            if until <= now:
                with _logged():
                    self._refuse(request, DeadlineExceeded("The server did not come to the request in time."))
        if in_time := [request for request, until in batch if until > now]:
            with _logged():
                self._answer(in_time)
        return bool(batch)

    def _next(self) -> list[tuple[T, float]]:
        """The next batch; empty when this is closed and nobody waits."""
        with self._changed:
            self._began_s = None
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            self._began_s = self._clock()
            return batch


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Where sending one answer fails, the next request shall have its own all the same."""
    try:
        yield
    except Exception as error:
        logging.getLogger(__name__).error("answering failed: %s", type(error).__name__)
