"""How an app that serves until it is told to stop hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def stop_on_signals() -> asyncio.Event:
    """Returns an event of the running loop that SIGINT and SIGTERM set, even if the shell ignores SIGINT for it, and
    SIGHUP, unless it is ignored, as by nohup."""
    stop = asyncio.Event()
    numbers = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up and signal.getsignal(hang_up) is not signal.SIG_IGN:
        numbers.append(hang_up)
    for number in numbers:
        with contextlib.suppress(NotImplementedError):  # Windows' loops take no handlers; there Ctrl-C interrupts
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`. None if `stop` is set before, which cancels it."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
