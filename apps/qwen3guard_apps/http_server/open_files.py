"""How many files this process may have open: each connection is one."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from qwen3guard_apps.http_server.limits import HttpLimits

_OTHERS = 512
"""What the process needs beside connections and the calls that they cause: modules, sockets, and connections that the
system has handed over before the oldest gave way."""
_FEWEST = 16

Bounded = TypeVar("Bounded", bound=HttpLimits)


def within_open_files(limits: Bounded, calls: int) -> tuple[Bounded, str]:
    """Raises the system's soft limit to what connections and `calls` need, as far as it lets.

    Returns the limits, with fewer connections where it does not, and then a sentence that says so, or an empty one.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return limits, ""
    needed = limits.max_connections + calls + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits, ""
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):
        allowed = soft
    if allowed >= needed:
        return limits, ""
    connections = min(limits.max_connections, max(_FEWEST, allowed - calls - _OTHERS))
    notice = f"warning: the limit of open files ({allowed}) allows {connections} connections at a time"
    return replace(limits, max_connections=connections), notice
