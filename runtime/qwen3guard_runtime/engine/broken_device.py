"""Ends the process when its device is broken.

An error of CUDA such as an illegal access is sticky: every later call of the process fails. Answering each request with
an error would look like a guard that works. When the process of a model ends, what supervises the server starts it
again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Protocol

from qwen3guard_runtime.engine.runner import Logits, Row, Runner

EXIT_STATUS = 70
"""The process's exit status: EX_SOFTWARE of sysexits.h."""


class Device(Protocol):
    def is_broken(self) -> bool: ...


class Watched:
    """A runner on a device. After a pass that failed on a broken device, `end` is called; it must not return."""

    def __init__(self, runner: Runner, device: Device, end: Callable[[int], object] = os._exit) -> None:
        self.runner = runner
        self._device = device
        self._end = end

    def forward(self, rows: Sequence[Row]) -> list[Logits]:
        try:
            return self.runner.forward(rows)
        except Exception as error:
            if self._device.is_broken():
                logging.getLogger(__name__).error(
                    "The GPU answers every call with an error since a pass failed (%s): this process ends.",
                    type(error).__name__,
                )
                self._end(EXIT_STATUS)
            raise
