"""The `parameters` that an operator sets in config.pbtxt, and the memory and cores of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen3guard_contract.errors import InvalidParameter, InvalidRequest
from qwen3guard_contract.thresholds import Thresholds

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_CORES = Path("/sys/fs/cgroup/cpu.max")


class Parameters:
    """A model's parameters, read by name. Each method raises InvalidParameter for a missing or wrong value, which stops
    the model from loading."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def whole(self, name: str, *, at_least: int = 0) -> int:
        text = self.text(name)
        if not text.isascii() or not text.isdigit() or int(text) < at_least:
            raise InvalidParameter(f"The parameter {name} is {text!r}; it must be a whole number from {at_least} on.")
        return int(text)

    def seconds(self, name: str) -> float:
        text = self.text(name)
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise InvalidParameter(f"The parameter {name} is {text!r}; it must be a number of seconds.")
        return value

    def flag(self, name: str) -> bool:
        text = self.text(name)
        if text not in ("true", "false"):
            raise InvalidParameter(f"The parameter {name} is {text!r}; it must be true or false.")
        return text == "true"

    def one_of(self, name: str, choices: Sequence[str]) -> str:
        text = self.text(name)
        if text not in choices:
            raise InvalidParameter(f"The parameter {name} is {text!r}; it must be one of {', '.join(choices)}.")
        return text

    def thresholds(self, name: str) -> Thresholds | None:
        """Thresholds as JSON; None if the parameter is empty."""
        text = self.text(name)
        try:
            return Thresholds.parse(text.encode()) if text else None
        except InvalidRequest as error:
            raise InvalidParameter(f"The parameter {name} is wrong. {error}") from None

    def text(self, name: str) -> str:
        if name not in self._values:
            raise InvalidParameter(f"The parameter {name} is missing from config.pbtxt: export the checkpoint again.")
        return self._values[name].strip()


def memory_bytes() -> int:
    """The memory that this process may use: the machine's, or its control group's limit if that is lower."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    return physical if limit == "max" else min(physical, int(limit))


def cores() -> int:
    """The number of cores that this process may use: those it may run on, or its control group's share if that is
    less."""
    allowed = len(os.sched_getaffinity(0))
    share, period = _CGROUP_CORES.read_text().split() if _CGROUP_CORES.is_file() else ("max", "1")
    return allowed if share == "max" else max(1, min(allowed, int(share) // int(period)))
