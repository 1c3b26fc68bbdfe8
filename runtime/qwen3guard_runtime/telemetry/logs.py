"""Log lines in JSON for operators: one for each failed request, up to a limit for each second.

A line has the model, the error's code, the milliseconds and the client's own id of the request. It never has a text, a
session id or a token.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

LOG_VARIABLE = "QWEN3GUARD_LOG"
"""The variable that turns these lines on, with the value `json`. Without it, failed requests are only counted."""
LINES_A_SECOND = 10
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def json_lines(environment: Mapping[str, str] = os.environ) -> bool:
    return environment.get(LOG_VARIABLE) == "json"


def line(level: str, event: str, **facts: object) -> str:
    """Returns one JSON object with the UTC time first. Facts that are None are left out."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return json.dumps({"time": stamp, "level": level, "event": event, **known})


def safe_request_id(request_id: str, sequence: int | str) -> str | None:
    """Returns the id if it may be logged: it is short, of plain characters, and not the session's. Otherwise None."""
    return request_id if _REQUEST_ID.fullmatch(request_id) and request_id != str(sequence) else None


class FailureLog:
    """Writes failed requests of one model to `out`, at most LINES_A_SECOND. The next line says how many were left
    out."""

    def __init__(self, model: str, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._out = out
        self._clock = clock
        self._second = 0
        self._written = 0
        self._left_out = 0

    def write(self, code: str, request_id: str | None, seconds: float) -> None:
        second = int(self._clock())
        if second != self._second:
            self._second, self._written = second, 0
        if self._written == LINES_A_SECOND:
            self._left_out += 1
            return
        self._written += 1
        text = line(
            "warning",
            "request_failed",
            model=self._model,
            code=code,
            request_id=request_id,
            ms=round(1000 * seconds, 3),
            left_out=self._left_out or None,
        )
        self._left_out = 0
        self._out.write(text + "\n")  # one write for the whole line: other processes write to the same file
        self._out.flush()


class JsonFormatter(logging.Formatter):
    """Writes the messages of the runtime's own loggers as lines of JSON."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model

    def format(self, record: logging.LogRecord) -> str:
        return line(record.levelname.lower(), "message", model=self._model, message=record.getMessage())


def failure_log(model: str) -> FailureLog | None:
    """Sets up logging to stderr. Returns the log of failed requests, or None if QWEN3GUARD_LOG does not ask for it.

    Messages of the runtime's own loggers are always written, as JSON if QWEN3GUARD_LOG asks for it.
    """
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("qwen3guard_runtime")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not json_lines():
        return None
    handler.setFormatter(JsonFormatter(model))
    return FailureLog(model, sys.stderr)
