"""What a model tells of the requests that it answers with an error.

This module reads Triton's objects, but imports nothing of it.
"""

from __future__ import annotations

import threading
from typing import Any

from qwen3guard_contract.errors import GuardError
from qwen3guard_contract.wire import POSITION, Model

from qwen3guard_runtime.telemetry import logs, metrics


class RefusalLog:
    """Counts the requests of one model that are answered with an error, and logs them if the log is on."""

    def __init__(self, model: Model) -> None:
        log = logs.ModelLog(model.name)
        self.metric = metrics.Refusals(model.name, lambda: log.dropped)
        self._failures = log.failures
        self._has_sessions = POSITION in model.inputs
        self._lock = threading.Lock()

    def note(self, request: Any, error: GuardError, seconds: float, *, canary: bool) -> None:
        """Counts one request, from any thread. It took `seconds`. A `canary` is not logged: the supervisor, which sent
        it, says what came of it, and one that ends the canaries' sequence is always refused."""
        with self._lock:
            self.metric.count(error, canary=canary)
            if self._failures and not canary:
                # The id of a step that names no session may be the session's, written in the wrong place.
                session = request.correlation_id()
                known = session or not self._has_sessions
                request_id = logs.safe_request_id(request.request_id(), session) if known else None
                self._failures.note(error.code, request_id, seconds)
