"""Keeps an embedded server running: if it no longer answers correctly, it is killed and started again.

Triton's own health endpoints are not enough: in 24.10 they stay ready when the process of a model is dead, and they do
not notice one that hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from qwen3guard_contract.errors import (
    CanaryFailed,
    DeadlineExceeded,
    GuardError,
    GuardNotServed,
    Overloaded,
    ServeError,
    Unreachable,
    from_text,
)

from qwen3guard_server.lifecycle import LIMITS, Cause, Lifecycle, Limits, ServerState
from qwen3guard_server.server import POLL_S, STILL_LOADING_S, EmbeddedServer

WATCH_S = 0.2
AskModel = Callable[[float], bool]
"""Asks one model, with a time-out in seconds. Returns False if nobody answers, and raises a GuardError if the answer is
wrong."""


class Supervisor:
    """Waits until a server that was started is ready, then watches it and starts it again when it fails.

    `canaries` has one for each model; they are asked in threads, and none waits for another. `ready` is called when all
    have answered, and after each restart. `say` gets the level (info or warning) and a sentence for the operator.
    """

    def __init__(
        self,
        server: EmbeddedServer,
        canaries: Mapping[str, AskModel],
        *,
        ready: Callable[[], None],
        say: Callable[[str, str], None],
        limits: Limits = LIMITS,
    ) -> None:
        self._server = server
        self._ready = ready
        self._say = say
        self._limits = limits
        self._lifecycle = Lifecycle(canaries, limits)
        self._asked = _Asked(canaries)
        self._told_s = 0.0
        self._is_blind = False

    def run(self, stop: threading.Event) -> None:
        """Returns when `stop` is set. Raises ServeError or CanaryFailed when the server is given up."""
        try:
            while not stop.wait(POLL_S if self._lifecycle.state is ServerState.LOADING else WATCH_S):
                self._step()
        finally:
            self._asked.close()

    def _step(self) -> None:
        try:
            self._watch()
        except (OSError, RuntimeError, MemoryError) as error:  # too many open files, or no room for a thread
            if not self._is_blind:
                why = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
                self._say("warning", f"the server cannot be watched ({why})")
            self._is_blind = True
        else:
            self._is_blind = False

    def _watch(self) -> None:
        """Raises OSError if this process cannot look."""
        if self._server.keep_clearer():
            self._say("warning", "what clears up after this process was killed, and is started again")
        if self._lifecycle.state is ServerState.RESTARTING:
            self._restart()
            return
        error = self._wrong()
        loading = self._lifecycle.state is ServerState.LOADING
        if fault := self._server.fault():  # what else is wrong comes of it
            error = self._server.load_error(fault) if loading else ServeError(str(fault))
            self._fail(error, Cause.INTERRUPTED if fault.interrupted else Cause.OTHER)
        elif error:
            self._fail(error)
        else:
            for model in self._lifecycle.due():
                self._asked.ask(model, self._limits.canary_timeout_s)

    def _wrong(self) -> GuardError | None:
        """What is wrong by the answers that have come, or as none has come for too long."""
        try:
            if self._lifecycle.state is ServerState.LOADING:
                self._check_loading()
            self._take_answers()
        except GuardError as error:
            return error
        return None

    def _restart(self) -> None:
        if not self._lifecycle.may_load():
            return
        self._lifecycle.load()
        try:
            self._server.restart()
        except GuardError as error:
            self._fail(error)

    def _check_loading(self) -> None:
        """Raises CanaryFailed if the server has been loading for too long."""
        now = time.monotonic()
        waited_s = self._lifecycle.loading_s
        self._server.check_loading(waited_s)
        if min(now - self._told_s, waited_s) >= STILL_LOADING_S:
            self._say("info", f"still loading ({waited_s:.0f} s)")
            self._told_s = now

    def _take_answers(self) -> None:
        """Raises the error of a wrong answer, and ServeError for silence too often, of a model or of the server."""
        for model, answer in self._asked.answers():
            if isinstance(error := answer.exception(), RuntimeError | MemoryError):
                self._say("warning", f"{model} could not be asked ({type(error).__name__})")
                self._lifecycle.not_asked(model)
                continue
            before = self._lifecycle.state
            is_its = before is not ServerState.LOADING or self._server.listens()
            if is_its and self._has_answered(model, answer):
                self._lifecycle.answered(model)
            else:
                self._lifecycle.missed(model)
            after = self._lifecycle.state
            silent = "The server" if self._server.is_stopped() else model
            if before is ServerState.LOADING and after is ServerState.READY:
                self._server.loaded()
                self._ready()
            elif before is ServerState.READY and after is ServerState.SUSPECT:
                self._say("warning", f"{silent} does not answer; asking it again")
            elif self._lifecycle.is_silent(model):
                raise ServeError(f"{silent} does not answer.")

    def _has_answered(self, model: str, answer: Future[bool]) -> bool:
        """Raises the error of a wrong answer."""
        try:
            return answer.result()
        except Overloaded:  # it is too busy for more, and says so
            return True
        except (DeadlineExceeded, Unreachable, GuardNotServed):
            return False
        except CanaryFailed:
            raise
        except GuardError as error:
            raise ServeError(f"{model} does not judge: {error}") from None
        except Exception as error:
            self._say("warning", f"{model} could not be asked ({type(error).__name__})")
            return False

    def _fail(self, error: GuardError, cause: Cause = Cause.OTHER) -> None:
        """Ends what is left of the server. Raises `error`, or a ServeError with it, if the server is given up."""
        if self._lifecycle.state is ServerState.LOADING and from_text(self._server.log):
            cause = Cause.REFUSED
        self._lifecycle.failed(cause)
        self._asked.forget()
        self._server.kill()
        failures, pause_s = self._lifecycle.failures, self._lifecycle.pause_s
        within = f"{failures} times in {self._limits.window_s / 60:g} min"
        if self._lifecycle.state is ServerState.GIVEN_UP:
            raise error if failures < self._limits.restarts else ServeError(f"The server failed {within}: {error}")
        pause = f" in {pause_s:g} s, as it failed {within}" if pause_s else ""
        self._say("warning", f"{error} Starting it again{pause}.")


class _Asked:
    """The canaries that are on their way, each in a thread."""

    def __init__(self, canaries: Mapping[str, AskModel]) -> None:
        self._canaries = canaries
        self._pool = ThreadPoolExecutor(len(canaries), "canary")
        self._running: dict[str, Future[bool]] = {}

    def ask(self, model: str, timeout_s: float) -> None:
        """Asks a model, unless it is being asked."""
        if model not in self._running:
            self._running[model] = self._pool.submit(self._canaries[model], timeout_s)

    def answers(self) -> Iterator[tuple[str, Future[bool]]]:
        """Those that have come since the last call."""
        for model in [model for model, answer in self._running.items() if answer.done()]:
            yield model, self._running.pop(model)

    def forget(self) -> None:
        """Waits for nothing that was asked so far."""
        self._running.clear()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
