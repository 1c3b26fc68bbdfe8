"""How an app that serves until it is told to stop hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import signal


def stop_on_signals() -> asyncio.Event:
    """Returns an event of the running loop that SIGINT and SIGTERM set, even if the shell ignores SIGINT for it."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows' loops take no handlers; there Ctrl-C interrupts
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
