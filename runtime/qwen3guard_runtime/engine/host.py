"""What this process may use of the machine: memory and cores."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_CORES = Path("/sys/fs/cgroup/cpu.max")


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
