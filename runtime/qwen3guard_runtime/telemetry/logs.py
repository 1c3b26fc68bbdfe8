"""What a model logs: messages, and if asked a line in JSON for each failed request, up to a limit for each second.

A line has the model, the error's code, the milliseconds and the client's own id of the request. It never has a text, a
session id or a token. Nothing that answers waits for the log (`log_output`).
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping

from qwen3guard_contract.log_output import LOG_VARIABLE, LogOutput, line

LINES_A_SECOND = 10
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def json_lines(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the log is JSON. If it is not, failed requests are only counted."""
    return environment.get(LOG_VARIABLE) == "json"


def safe_request_id(request_id: str, sequence: int | str) -> str | None:
    """Returns the id if it may be logged: it is short, of plain characters, and says nothing of the session's id.
    Otherwise None.

    `sequence` is the session's id as Triton tells it: a negative number has become the positive one of the same 64
    bits.
    """
    if not _REQUEST_ID.fullmatch(request_id):
        return None
    if isinstance(sequence, int):
        tells = request_id in (str(sequence), str(sequence - 2**64))
    else:
        ours, session = (re.sub(r"[^a-z0-9]", "", each.lower()) for each in (request_id, sequence))
        tells = bool(session) and (ours in session or session in ours)
    return None if tells else request_id


class FailureLog:
    """Gives `write` a line for each failed request of one model, at most LINES_A_SECOND. The next line says how many
    were left out."""

    def __init__(self, model: str, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._write = write
        self._clock = clock
        self._second = 0
        self._written = 0
        self._left_out = 0

    def note(self, code: str, request_id: str | None, seconds: float) -> None:
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
        self._write(text + "\n")


class JsonFormatter(logging.Formatter):
    """Writes the messages of the runtime's own loggers as lines of JSON."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model

    def format(self, record: logging.LogRecord) -> str:
        return line(record.levelname.lower(), "message", model=self._model, message=record.getMessage())


class ModelLog:
    """The log of this process, which serves `model`: all that the runtime's own loggers say, as JSON if QWEN3GUARD_LOG
    asks for it. Then `failures` is the log of failed requests; otherwise it is None."""

    def __init__(self, model: str) -> None:
        as_json = json_lines()
        self._output = LogOutput(sys.stderr.fileno(), as_json=as_json)
        handler = logging.StreamHandler(self._output)
        if as_json:
            handler.setFormatter(JsonFormatter(model))
        logger = logging.getLogger("qwen3guard_runtime")
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
        self.failures = FailureLog(model, self._output.write) if as_json else None

    @property
    def dropped(self) -> int:
        """How many lines were dropped."""
        return self._output.dropped
