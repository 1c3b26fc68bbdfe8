"""Names of hosts, as they stand in a Host header, an Origin or an option."""

from __future__ import annotations

import ipaddress
import re

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/@\[\]]+)(:\d{1,5})?", re.ASCII)


def name_of(host: str) -> str | None:
    """The host in lower case, without its port and a last point. None if it is none."""
    found = _HOST.fullmatch(host.lower())
    return found[1].removesuffix(".") if found else None


def is_host_name(text: str) -> bool:
    """Whether this is a host without a port, and no pattern."""
    return "*" not in text and name_of(text) == text.lower().removesuffix(".")


def is_loopback(host: str) -> bool:
    """Whether this is localhost or a loopback address, with or without the brackets of IPv6."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
