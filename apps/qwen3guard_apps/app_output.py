"""What an app that serves says: its log and its notices on standard error or in a file, its address on standard output.

Nothing that answers waits for a reader, and nothing of a request is in what others (asyncio, aiohttp) log.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from qwen3guard_contract.errors import GuardError, ServeError
from qwen3guard_contract.log_output import LogOutput, RotatedLog, line, stamp

OUR_LOGS = "qwen3guard"
_TRACES = "opentelemetry."
LACK_S = 1.0
"""How often it is told at most that this process has too many files open, in seconds."""


def add_log_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-file",
        type=Path,
        metavar="FILE",
        help="write the log to this file, of which up to 6 parts of 10 MiB are kept (default: standard error)",
    )


class AppOutput:
    """Takes the log of the process from `level` on, until it is left. It is written to `log_file`, if there is one.

    With `as_json` the app's notices are lines of JSON (`log_output.line`) too. Raises ServeError where the file cannot
    be opened.
    """

    def __init__(self, level: int, log_file: Path | None, *, as_json: bool) -> None:
        self._as_json = as_json
        self._in_file = log_file is not None
        self._log = _opened(log_file, as_json=as_json) if log_file else _standard(sys.stderr, as_json=as_json)
        self._answers = _standard(sys.stdout)
        self._handler = logging.StreamHandler(self._log)
        self._handler.addFilter(_kind_alone)
        self._level = level
        self._lacked_s = float("-inf")

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self._handler)
        logging.getLogger(OUR_LOGS).setLevel(self._level)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, GuardError) and (self._as_json or self._in_file):  # standard error has it anyway
            self.tell("error", str(error), event="given_up")
        logging.getLogger().removeHandler(self._handler)
        for output in (self._log, self._answers):
            output.close()

    def tell(self, level: str, text: str, event: str = "notice") -> None:
        """Writes a sentence for the operator into the log."""
        if self._as_json:
            self.log(line(level, event, message=text))
        else:
            self.log(f"{stamp()} {text}" if self._in_file else text)

    def log(self, text: str) -> None:
        """Writes a line into the log as it is."""
        self._log.write(f"{text}\n")

    def print(self, text: str) -> None:
        """Writes a line to standard output."""
        self._answers.write(f"{text}\n")

    def log_unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """For a loop: what nobody caught, by its kind alone. asyncio tells the same lack of files hundreds of times."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            if time.monotonic() - self._lacked_s >= LACK_S:
                self._lacked_s = time.monotonic()
                self.log(line("error", "http", error="too_many_open_files"))
            return
        self.log(line("error", "http", error="internal", exception=type(context.get("exception")).__name__))


def _standard(stream: TextIO | None, *, as_json: bool = False) -> LogOutput:
    """The output for a standard stream. It is None if it was closed before the start; its number may be a socket's."""
    if stream is None:
        return LogOutput(None)
    return LogOutput(stream.fileno(), as_json=as_json, encoding=stream.encoding)


def _opened(log_file: Path, *, as_json: bool) -> LogOutput:
    try:
        return RotatedLog(log_file, as_json=as_json)
    except OSError as error:
        raise ServeError(f"The log file {log_file} cannot be opened: {error.strerror}.") from None
    except RuntimeError:  # of Python below 3.13
        raise ServeError(f"The log file {log_file} cannot be opened: it is a link that leads to itself.") from None


def say_error(text: str) -> None:
    """Writes lines to standard error. Where its reader stalls, this gives up after a second."""
    try:
        output = _standard(sys.stderr)
    except OSError:  # it is no stream of the system's
        print(text, file=sys.stderr, flush=True)
        return
    for each in text.splitlines():
        output.write(f"{each}\n")
    output.close()


def _kind_alone(record: logging.LogRecord) -> bool:
    """Of a record that is not ours, the kind alone: its text may quote a request."""
    if not record.name.startswith(OUR_LOGS):  # our packages, and the apps' own
        kind = record.exc_info[0] if record.exc_info else None
        event, error = ("traces", "not_sent") if record.name.startswith(_TRACES) else ("http", "internal")
        facts = {"error": error, "logger": record.name, "exception": kind.__name__ if kind else None}
        record.msg, record.args = line(record.levelname.lower(), event, **facts), ()
        record.exc_info = record.exc_text = record.stack_info = None
    return True
