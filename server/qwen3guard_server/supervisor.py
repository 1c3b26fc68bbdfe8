"""Keeps an embedded server running: if it no longer answers correctly, it is killed and started again.

Triton's own health endpoints are not enough: they stay ready when the process of a model is dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from qwen3guard_contract.errors import DeadlineExceeded, GuardError, Overloaded

from qwen3guard_server.server import EmbeddedServer

WATCH_S = 0.2
CANARY_S = 10.0
CANARY_TIMEOUT_S = 30.0
START_ATTEMPTS = 3
"""How often in a row starting it again may fail. A server that does not start the first time is given up at once."""
MISSES = 2
"""After so many unanswered canaries in a row the server counts as hung. One may be late because of load."""


def supervise(
    server: EmbeddedServer,
    canary: Callable[[float], bool],
    *,
    ready: Callable[[], None],
    say: Callable[[str], None],
    relay: Callable[[str], None] = lambda _: None,
    canary_s: float = CANARY_S,
    canary_timeout_s: float = CANARY_TIMEOUT_S,
) -> None:
    """Waits until the server is ready, then watches it and starts it again when it fails. Never returns.

    `canary` takes a time-out in seconds; it returns False if nobody answers, and raises a GuardError if the answer is
    wrong. `ready` is called when the server first answers and after each restart. `say` gets sentences for the
    operator, and `relay` the server's events (`EmbeddedServer.events`).

    Raises ServeError or CanaryFailed if the server cannot be started, the first time or later.
    """
    load_s = server.settings.load_s
    failures = 0
    first = True
    while True:
        try:
            if not first:
                server.restart()
            server.wait_ready(
                lambda: _answers(canary, load_s), lambda waited_s: say(f"still loading ({waited_s:.0f} s)")
            )
        except GuardError as error:
            failures += 1
            if first or failures == START_ATTEMPTS:
                raise
            why = str(error).rstrip(".")
        else:
            failures = 0
            first = False
            ready()
            why = _watch(server, lambda: _answers(canary, canary_timeout_s), canary_s, relay)
        say(f"{why}; starting it again")


def _answers(canary: Callable[[float], bool], timeout_s: float) -> bool:
    """Whether the server answers correctly. A server that refuses the canary because it is overloaded does."""
    try:
        return canary(timeout_s)
    except Overloaded:
        return True


def _watch(server: EmbeddedServer, canary: Callable[[], bool], canary_s: float, relay: Callable[[str], None]) -> str:
    """Returns when the server no longer answers correctly, with the reason."""
    missed = 0
    asked_s = time.monotonic()
    while missed < MISSES:
        time.sleep(WATCH_S)
        for event in server.events():
            relay(event)
        if fault := server.fault():
            return fault
        if time.monotonic() - asked_s < canary_s:
            continue
        try:
            missed = 0 if canary() else missed + 1
        except DeadlineExceeded:
            missed += 1
        except GuardError as error:
            return server.fault() or str(error).rstrip(".")
        asked_s = time.monotonic()
    return "the server no longer answers"
