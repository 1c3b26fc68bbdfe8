"""The parts of a run: each is a script of this folder in a process of its own, whose figures are kept even if it fails
or is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
LAST_WORDS = 500


@dataclass(frozen=True)
class Part:
    """A script with its arguments, which may take at most `minutes`. `if_fake` is whether it is run without a card."""

    script: str
    arguments: tuple[str, ...] = ()
    minutes: float = 5.0
    folder: Path = HERE
    if_fake: bool = True

    @property
    def name(self) -> str:
        return " ".join([Path(self.script).stem, *self.arguments])


@dataclass(frozen=True)
class Outcome:
    """What a part did: its figures, the seconds that it took, and why it failed, if it did."""

    part: str
    figures: list[dict[str, Any]]
    seconds: float
    failed: str | None = None
    is_last: bool = False
    """Whether this process was told to end meanwhile."""

    @property
    def summary(self) -> dict[str, Any]:
        return {"part": self.part, "figures": len(self.figures), "seconds": round(self.seconds, 1)} | (
            {"failed": self.failed} if self.failed else {}
        )


def run(part: Part, arguments: Sequence[str], seconds: float) -> Outcome:
    """Runs a part with further `arguments` for at most `seconds`, or its own limit if that is less; then it and what it
    started are stopped. So they are when this process is told to end, by SystemExit or KeyboardInterrupt."""
    limit = min(seconds, 60 * part.minutes)
    command = [sys.executable, str(part.folder / part.script), *part.arguments, *arguments]
    figures: list[dict[str, Any]] = []
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )  # in a session of its own, so that all of it can be stopped
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, figures))
        reader.start()
        failed, is_last = None, False
        try:
            if status := process.wait(limit):
                failed = f"exit status {status}: {_last_words(errors)}"
        except subprocess.TimeoutExpired:
            failed = f"stopped after {limit:.0f} s"
        except (SystemExit, KeyboardInterrupt):
            failed, is_last = "the run was ended meanwhile", True
        _stop(process)
        reader.join()
        process.stdout.close()
    if not failed and not figures:
        failed = "no figures"
    return Outcome(part.name, figures, time.monotonic() - began, failed, is_last)


def _read(lines: IO[str], figures: list[dict[str, Any]]) -> None:
    """Keeps the lines that are figures, and passes the others on."""
    for line in lines:
        try:
            figure = json.loads(line)
        except ValueError:
            figure = None
        if isinstance(figure, dict) and "figure" in figure:
            figures.append(figure)
        print(line, end="", file=sys.stderr, flush=True)


def _last_words(errors: IO[str]) -> str:
    errors.seek(0)
    return " ".join(errors.read()[-LAST_WORDS:].split())


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends the process, if it has not ended, and what it started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
