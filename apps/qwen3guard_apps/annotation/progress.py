"""One line of progress, rewritten in place on a terminal; nothing where standard error is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

EVERY_S = 0.2


class Progress:
    """The progress through `total` rows, of which an earlier run did `done`; written to `out`, or standard error."""

    def __init__(
        self, total: int, done: int, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.done = self._before = done
        self._total = total
        self._out = out or sys.stderr
        self._clock = clock
        self._began = clock()
        self._shown_at = float("-inf")
        self._shows = self._out.isatty()

    @property
    def seconds(self) -> float:
        return self._clock() - self._began

    @property
    def rate(self) -> float:
        """Rows a second in this run."""
        return (self.done - self._before) / max(self.seconds, 1e-9)

    def step(self, bad: int) -> None:
        self.done += 1
        if self._shows and self._clock() - self._shown_at >= EVERY_S:
            self._shown_at = self._clock()
            self._out.write(f"\r\033[K{self.line(bad)}")
            self._out.flush()

    def line(self, bad: int) -> str:
        left = _duration((self._total - self.done) / self.rate)
        share = self.done / self._total
        return f"{self.done:,} of {self._total:,} rows ({share:.0%}), {self.rate:.1f} rows/s, {left} left, {bad:,} bad"

    def close(self) -> None:
        if self._shows:
            self._out.write("\r\033[K")
            self._out.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
