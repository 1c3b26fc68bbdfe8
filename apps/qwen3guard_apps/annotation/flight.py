"""Many calls at once: results in the order of their rows, and no more calls under way than the server takes.

A served Gen refuses what its queue cannot hold. So the number of calls under way grows with each answer and shrinks
with each refusal, and what was refused is sent again. Knows nothing of rows, files or gRPC.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

from qwen3guard_contract.errors import (
    DeadlineExceeded,
    GuardError,
    GuardNotServed,
    InputError,
    InternalError,
    InvalidRequest,
    Overloaded,
    SessionLost,
    Unreachable,
    UnreadableAnswer,
)

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT = 8
"""A batch of the served Gen. More did not give more, and what its queue refuses was tokenized in vain."""
PATIENCE_S = 600.0
ROW_ATTEMPTS = 4
"""Of one row that the server fails at, or does not answer in time."""
FIRST = 8.0
"""Calls under way at first."""
GROWTH = 0.25
"""Of the limit in the time of as many answers, once the server has refused; before that it doubles."""
SHRINK = 0.75
SHRINK_S = 0.1
"""A burst of refusals within it counts as one."""
PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.5
ROWS_A_CALL = 8
"""Rows begun and not written yet, for each call that may be under way."""


class Flight:
    """How many calls are under way, and the patience with a server that is full or gone.

    At most `in_flight` calls at once. A server that has answered before and then answers nothing for `patience_s`
    seconds is given up. Raises InvalidRequest for an `in_flight` below 1.
    """

    def __init__(
        self,
        in_flight: int = IN_FLIGHT,
        patience_s: float = PATIENCE_S,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if in_flight < 1:
            raise InvalidRequest(f"{in_flight} calls in flight are too few; give 1 or more.")
        self.in_flight = in_flight
        self.limit = min(FIRST, in_flight)
        self.refusals = 0
        self._patience_s = patience_s
        self._clock = clock
        self._sleep = sleep
        self._active = 0
        self._changed = asyncio.Condition()
        self._answered_at: float | None = None
        self._shrunk_at = float("-inf")
        self._began = clock()

    async def call(self, ask: Callable[[], Awaitable[R]]) -> R:
        """What `ask` gives. Raises an InputError at once, and any other GuardError where trying again is no use."""
        failures = refusals = 0
        while True:
            try:
                result = await self._under_way(ask)
            except (Overloaded, Unreachable, GuardNotServed, SessionLost) as error:
                refusals += 1
                if self._is_hopeless(error):
                    raise
                self._shrink()
            except (InputError, UnreadableAnswer) as error:
                self._heard(from_server=isinstance(error, UnreadableAnswer))
                raise
            except (DeadlineExceeded, InternalError):
                failures += 1
                if failures == ROW_ATTEMPTS:
                    raise
                self._shrink()
            else:
                self._grow()
                return result
            pause = min(LONGEST_PAUSE_S, PAUSE_S * 2 ** (refusals + failures))
            await self._sleep(pause * random.uniform(0.5, 1.0))

    async def _under_way(self, ask: Callable[[], Awaitable[R]]) -> R:
        async with self._changed:
            await self._changed.wait_for(lambda: self._active < int(self.limit))
            self._active += 1
        try:
            return await ask()
        finally:
            self._active -= 1
            async with self._changed:
                self._changed.notify(max(0, int(self.limit) - self._active))

    def _is_hopeless(self, error: GuardError) -> bool:
        if self._answered_at is None and not isinstance(error, Overloaded):
            return True
        since = self._began if self._answered_at is None else self._answered_at
        return self._clock() - since > self._patience_s

    def _shrink(self) -> None:
        self.refusals += 1
        now = self._clock()
        if now - self._shrunk_at >= SHRINK_S:
            self.limit = max(1.0, self.limit * SHRINK)
            self._shrunk_at = now

    def _heard(self, *, from_server: bool = True) -> None:
        """The client refuses some rows itself, which says nothing of a server that was never heard."""
        if from_server or self._answered_at is not None:
            self._answered_at = self._clock()

    def _grow(self) -> None:
        self._heard()
        self.limit = min(self.in_flight, self.limit + (GROWTH / self.limit if self.refusals else 1.0))


async def in_order(
    items: Iterable[T], work: Callable[[T], Awaitable[R]], land: Callable[[T, R], None], in_flight: int
) -> None:
    """Calls `land` with each item and its result, in order; at most ROWS_A_CALL x `in_flight` items are held meanwhile.

    Stops at the first error of `work` or `land`, and raises it.
    """
    room = asyncio.Semaphore(ROWS_A_CALL * in_flight)
    waiting: dict[int, tuple[T, R]] = {}
    source: Iterator[tuple[int, T]] = enumerate(items)
    landed = 0

    async def worker() -> None:
        nonlocal landed
        while True:
            await room.acquire()
            taken = next(source, None)
            if taken is None:
                room.release()
                return
            number, item = taken
            waiting[number] = (item, await work(item))
            while landed in waiting:
                land(*waiting.pop(landed))
                landed += 1
                room.release()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
