"""The texts of requests that bring several: a few are judged at a time, of all requests together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from qwen3guard_contract.errors import Overloaded

T = TypeVar("T")
V = TypeVar("V")
AT_ONCE = 4
"""Fewer than a guard lets wait as it is shipped, so that these requests alone never overload it."""
AGAIN_S = 0.5
"""About how long after a refusal a text is put to the guard again."""


class Batches:
    """What all requests share. A text that the guard refuses as overloaded is asked again, one at a time of all, until
    its request has tried for `patience_s`: to refuse the request at once would throw away what is judged of it, and its
    caller would send all of it again."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._some = asyncio.Semaphore(AT_ONCE)
        self._one = asyncio.Lock()

    async def judge(self, judge: Callable[[T], Awaitable[V]], texts: Sequence[T]) -> list[V | BaseException]:
        """What `judge` returns or raises for each of one request's `texts`. A lone one waits for no other request, and
        is asked once.

        What has begun is finished if the caller is cancelled, so that every session that was opened is ended; nothing
        more is begun.
        """
        batch = _Batch(self._patience_s)

        async def judged(text: T) -> V:
            async with self._some:
                try:
                    batch.check()
                    return await judge(text)
                except Overloaded as error:
                    batch.refused(error)
                async with self._one:
                    while True:
                        await asyncio.sleep(AGAIN_S * random.uniform(0.5, 1.5))
                        try:
                            batch.check()
                            return await judge(text)
                        except Overloaded as error:
                            batch.refused(error)

        async def judged_in_turn() -> None:
            for number, text in waiting:
                try:
                    results[number] = await (judged if len(texts) > 1 else judge)(text)
                except asyncio.CancelledError:
                    if not batch.left:  # it is not the batch that is given up
                        raise
                except Exception as error:
                    results[number] = error

        # A request waits for a place with AT_ONCE texts at most, so that those of others have theirs between them.
        results: list[V | BaseException] = [asyncio.CancelledError()] * len(texts)
        waiting = enumerate(texts)
        judging = asyncio.gather(*(judged_in_turn() for _ in range(min(AT_ONCE, len(texts)))))
        try:
            await asyncio.shield(judging)
            return results
        finally:
            batch.left = True


class _Batch:
    """One request. It is given up when a text of it has been refused for too long, or when its caller has `left`."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._until_s = float("inf")
        self._given_up: Overloaded | None = None
        self.left = False

    def check(self) -> None:
        """Raises Overloaded or CancelledError if it is given up."""
        if self._given_up:
            raise self._given_up
        if self.left:
            raise asyncio.CancelledError

    def refused(self, error: Overloaded) -> None:
        """Raises `error` if it has been refused for too long."""
        now_s = asyncio.get_running_loop().time()
        self._until_s = min(self._until_s, now_s + self._patience_s)
        if now_s >= self._until_s or self._given_up:
            self._given_up = error
            raise error
