"""Threads that read what is large, so that others are answered meanwhile."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")
THREADS = 4
SWITCH_S = 0.001
"""How long a thread may keep the others from running; Python's default is 5 ms."""


class Apart(Protocol):
    """Does some work, perhaps in a thread, and gives what it returns or raises."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


async def at_once(work: Callable[[], T], /) -> T:
    return work()


class Readers:
    """Up to `at_once_bytes`, a text is read faster than a thread begins."""

    def __init__(self, at_once_bytes: int) -> None:
        self._at_once_bytes = at_once_bytes
        self._threads = ThreadPoolExecutor(THREADS, "reader")
        sys.setswitchinterval(SWITCH_S)

    async def read(self, size: int, work: Callable[[], T]) -> T:
        """What `work` makes of a text of `size` bytes or characters. What it raises is raised here."""
        if size <= self._at_once_bytes:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
