"""Many calls at once: results in the order of their rows, and no more calls in flight than the server takes.

A served Gen refuses what its queue cannot hold. So the limit on calls in flight grows with each answer and shrinks with
each refusal, and a refused call is sent again. This module knows nothing of rows, files or gRPC.
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
"""The default for the most calls in flight: as many as a served Gen has slots. More calls did not raise the rate, and
the server tokenizes a text before its queue refuses it."""
PATIENCE_S = 600.0
"""The default for how long a server that is full or restarting is waited for."""
ROW_ATTEMPTS = 4
"""How often a call is sent that fails in the server, or gets no answer in time."""
FIRST_LIMIT = 8.0
"""The limit on calls in flight at the start."""
GROWTH = 0.25
"""Each answer raises the limit by GROWTH / limit: 8 answers raise a limit of 8 to about 8.25. This holds once the
server has refused a call; before the first refusal, each answer raises the limit by 1."""
SHRINK = 0.75
"""A refusal multiplies the limit by this, to no less than 1."""
SHRINK_S = 0.1
"""Refusals within this time of one that has shrunk the limit do not shrink it again."""
PAUSE_S = 0.02
"""Before its nth repetition a call waits half to all of PAUSE_S * 2^n, at most LONGEST_PAUSE_S."""
LONGEST_PAUSE_S = 0.5
ROWS_A_CALL = 8
"""How many rows may be begun and not yet written, for each call that may be in flight."""


class Flight:
    """Limits the calls in flight, and repeats those that a server refuses while it is full or restarting.

    At most `in_flight` calls are in flight at once. The server is given up when it has answered nothing for
    `patience_s` seconds; a server that has never answered is given up at once, unless it refuses because it is full.
    Raises InvalidRequest for an `in_flight` below 1.
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
        self.limit = min(FIRST_LIMIT, in_flight)
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
        """Returns what `ask` returns, called again where that may help.

        Raises an InputError or UnreadableAnswer at once, and any other GuardError if another try cannot help.
        """
        failures = refusals = 0
        while True:
            try:
                result = await self._ask_within_limit(ask)
            except (Overloaded, Unreachable, GuardNotServed, SessionLost) as error:
                refusals += 1
                if self._is_hopeless(error):
                    raise
                self._shrink()
            except (InputError, UnreadableAnswer) as error:
                self._note_answer(from_server=isinstance(error, UnreadableAnswer))
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

    async def _ask_within_limit(self, ask: Callable[[], Awaitable[R]]) -> R:
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

    def _note_answer(self, *, from_server: bool = True) -> None:
        """Notes the time of an answer. The client rejects some rows itself, which says nothing about the server."""
        if from_server or self._answered_at is not None:
            self._answered_at = self._clock()

    def _grow(self) -> None:
        self._note_answer()
        self.limit = min(self.in_flight, self.limit + (GROWTH / self.limit if self.refusals else 1.0))


async def in_order(
    items: Iterable[T], work: Callable[[T], Awaitable[R]], finish: Callable[[T, R], None], in_flight: int
) -> None:
    """Calls `finish` with each item and the result of `work` on it, in the order of `items`.

    `in_flight` items are worked on at once, and at most ROWS_A_CALL x `in_flight` are held. Stops at the first error of
    `work` or `finish`, and raises it.
    """
    room = asyncio.Semaphore(ROWS_A_CALL * in_flight)
    waiting: dict[int, tuple[T, R]] = {}
    source: Iterator[tuple[int, T]] = enumerate(items)
    finished = 0

    async def worker() -> None:
        nonlocal finished
        while True:
            await room.acquire()
            numbered = next(source, None)
            if numbered is None:
                room.release()
                return
            number, item = numbered
            waiting[number] = (item, await work(item))
            while finished in waiting:
                finish(*waiting.pop(finished))
                finished += 1
                room.release()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
