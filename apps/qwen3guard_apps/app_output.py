"""What an app that serves says: its log and its notices on standard error or in a file, its address on standard output.

Nothing that answers waits for a reader, and nothing of a request is in what others (asyncio, aiohttp) log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qwen3guard_contract.log_output import LogOutput, RotatedLog

OUR_LOGS = "qwen3guard"


def add_log_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-file",
        type=Path,
        metavar="FILE",
        help="write the log to this file, of which up to 6 parts of 10 MiB are kept (default: standard error)",
    )


class AppOutput:
    """Takes the log of the process from `level` on, until it is left. It is written to `log_file`, if there is one.

    `as_json` says whether the app's own lines are JSON. Raises OSError where the file cannot be made.
    """

    def __init__(self, level: int, log_file: Path | None = None, *, as_json: bool = True) -> None:
        errors = sys.stderr.fileno() if sys.stderr else None  # else 2 is somebody's socket
        self._errors = RotatedLog(log_file, as_json=as_json) if log_file else LogOutput(errors, as_json=as_json)
        self._answers = LogOutput(sys.stdout.fileno())
        self._handler = logging.StreamHandler(self._errors)
        self._handler.addFilter(_kind_alone)
        self._level = level

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self._handler)
        logging.getLogger(OUR_LOGS).setLevel(self._level)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        logging.getLogger().removeHandler(self._handler)
        for output in (self._errors, self._answers):
            output.close()

    def say(self, line: str) -> None:
        """In the log."""
        self._errors.write(f"{line}\n")

    def print(self, line: str) -> None:
        """On standard output."""
        self._answers.write(f"{line}\n")

    def log_unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """For a loop: what nobody caught, by its kind alone."""
        self.say(json.dumps({"error": "internal", "exception": type(context.get("exception")).__name__}))


def _kind_alone(record: logging.LogRecord) -> bool:
    if record.name.partition(".")[0] != OUR_LOGS:
        kind = record.exc_info[0] if record.exc_info else None
        facts = {"error": "internal", "logger": record.name, "exception": kind.__name__ if kind else None}
        record.msg, record.args = json.dumps({name: fact for name, fact in facts.items() if fact}), ()
        record.exc_info = record.exc_text = record.stack_info = None
    return True
