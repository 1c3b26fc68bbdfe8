"""Keeps an embedded server running: one that no longer answers as it should is killed and started anew.

Triton's own health endpoints do not tell: they stay ready when the process behind a model is dead.
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
"""Of starting it again, in a row. A server that does not start the first time never will."""
MISSES = 2
"""Canaries in a row that may go unanswered: a server under load is late, a hung one never answers."""


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
    """Returns never. `canary` takes a time-out in seconds, says False while nobody answers, and raises a GuardError
    where the answer is wrong. `ready` is called when the server answers, the first time and after each restart; `relay`
    gets the server's events.

    Raises ServeError or CanaryFailed where the server cannot be started, the first time or again.
    """
    load_s = server.settings.load_s
    failures = 0
    first = True
    while True:
        try:
            if not first:
                server.restart()
            server.wait_ready(lambda: _answers(canary, load_s), lambda: say("..."))
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
    """A server that refuses the canary since it is full is well."""
    try:
        return canary(timeout_s)
    except Overloaded:
        return True


def _watch(server: EmbeddedServer, canary: Callable[[], bool], canary_s: float, relay: Callable[[str], None]) -> str:
    """Waits until the server can no longer answer, and says why."""
    missed = 0
    asked = time.monotonic()
    while missed < MISSES:
        time.sleep(WATCH_S)
        for event in server.events():
            relay(event)
        if fault := server.fault():
            return fault
        if time.monotonic() - asked < canary_s:
            continue
        try:
            missed = 0 if canary() else missed + 1
        except DeadlineExceeded:
            missed += 1
        except GuardError as error:
            return server.fault() or str(error).rstrip(".")
        asked = time.monotonic()
    return "the server no longer answers"
