"""The states of a supervised server, and what leads from one to the next. It knows neither processes nor sleep.

LOADING    -> READY       every model has answered its canary
READY     <-> SUSPECT     a model has not answered in time / all have answered again
any of these -> RESTARTING    a fault, a wrong answer, or no answer again and again; a pause, and then LOADING
any of these -> GIVEN_UP      it refuses to load, or was started too often
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, auto


class ServerState(Enum):
    LOADING = auto()
    READY = auto()
    SUSPECT = auto()
    RESTARTING = auto()
    GIVEN_UP = auto()


class Cause(Enum):
    """Why a server failed: it was interrupted (server.Fault); it does not load, and says why; or anything else."""

    INTERRUPTED = auto()
    REFUSED = auto()
    OTHER = auto()


@dataclass(frozen=True)
class Limits:
    """Each model is asked every `canary_s` seconds, and must answer within `canary_timeout_s`. One that did not is
    asked again after `again_s`, and the server is started again after `misses` in a row.

    A start waits for a pause, which is 0 for the first failure within `window_s`, then `pause_s`, and doubles up to
    `longest_pause_s`. The server is given up after `restarts` failures within `window_s`, after `refusals` of them in
    a row by Cause.REFUSED, and if it does not load the first time for any cause but Cause.INTERRUPTED.
    """

    canary_s: float = 10.0
    canary_timeout_s: float = 30.0
    again_s: float = 1.0
    misses: int = 2
    pause_s: float = 1.0
    longest_pause_s: float = 30.0
    restarts: int = 10
    window_s: float = 900.0
    refusals: int = 3


LIMITS = Limits()


class Lifecycle:
    """The state of one server with `models`, each of which has its own health. `clock` returns seconds."""

    def __init__(
        self, models: Collection[str], limits: Limits = LIMITS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._missed = dict.fromkeys(models, 0)
        self._due_s = dict.fromkeys(models, 0.0)
        self._unanswered: set[str] = set()
        self._failures_s: deque[float] = deque()
        self._refusals = 0
        self._was_ready = False
        self._resumes_s = 0.0
        self._state = ServerState.LOADING
        self._began_s = 0.0
        self.load()

    @property
    def state(self) -> ServerState:
        if self._state is ServerState.READY and any(self._missed.values()):
            return ServerState.SUSPECT
        return self._state

    @property
    def failures(self) -> int:
        """How many failures there were within `window_s`."""
        while self._failures_s and self._clock() - self._failures_s[0] > self._limits.window_s:
            self._failures_s.popleft()
        return len(self._failures_s)

    @property
    def pause_s(self) -> float:
        """How long the pause after the last failure is in all."""
        doublings = self.failures - 2
        return min(self._limits.pause_s * 2**doublings, self._limits.longest_pause_s) if doublings >= 0 else 0.0

    def load(self) -> None:
        """The server is being started."""
        self._state = ServerState.LOADING
        self._began_s = self._clock()
        self._unanswered = set(self._missed)
        self._missed = dict.fromkeys(self._missed, 0)
        self._due_s = dict.fromkeys(self._due_s, self._began_s)

    @property
    def loading_s(self) -> float:
        """Seconds since it was started."""
        return self._clock() - self._began_s

    def may_load(self) -> bool:
        """Whether the pause before the next start is over."""
        return self._state is ServerState.RESTARTING and self._clock() >= self._resumes_s

    def due(self) -> list[str]:
        """The models to ask now. Those that have answered are asked again when all have."""
        now = self._clock()
        if self._state is ServerState.LOADING:
            return sorted(name for name in self._unanswered if now >= self._due_s[name])
        return [name for name, due_s in self._due_s.items() if now >= due_s] if self._state is ServerState.READY else []

    def answered(self, model: str) -> None:
        """The model has answered its canary rightly."""
        self._missed[model] = 0
        self._due_s[model] = self._clock() + self._limits.canary_s
        self._unanswered.discard(model)
        if self._state is ServerState.LOADING and not self._unanswered:
            self._state = ServerState.READY
            self._was_ready = True
            self._refusals = 0

    def missed(self, model: str) -> None:
        """The model has not answered in time. While it is loading that is nothing."""
        if self._state is not ServerState.READY:
            return
        self._missed[model] += 1
        self._due_s[model] = self._clock() + self._limits.again_s

    def not_asked(self, model: str) -> None:
        """The model could not be asked, for a reason of this process, which says nothing of the model."""
        self._due_s[model] = self._clock() + self._limits.canary_s

    def is_silent(self, model: str) -> bool:
        """Whether the model has not answered so often that the server has failed."""
        return self._missed[model] >= self._limits.misses

    def failed(self, cause: Cause = Cause.OTHER) -> None:
        """The server can no longer answer, or answers wrongly."""
        now = self._clock()
        self._failures_s.append(now)
        self._refusals = self._refusals + 1 if cause is Cause.REFUSED else 0
        never_loads = not self._was_ready and cause is not Cause.INTERRUPTED
        if never_loads or self.failures >= self._limits.restarts or self._refusals >= self._limits.refusals:
            self._state = ServerState.GIVEN_UP
        else:
            self._state = ServerState.RESTARTING
            self._resumes_s = now + self.pause_s
