"""The limits of one HTTP server: how long its clients may take, and how much they may send."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3guard_contract.errors import InvalidParameter

LINE_BYTES = 2**13
"""The longest target of a request."""
FIELD_BYTES = 2**14
"""The longest header, with its name."""
MOST_HEADERS = 128


@dataclass(frozen=True)
class HttpLimits:
    """Times in seconds, sizes in bytes. No byte that a client sends prolongs a time.

    `head_timeout_s` is for the whole head of a request: of the first from the connection's beginning, of a later one
    from its first byte. `body_timeout_s` is for the whole body. Between requests a connection may be idle for
    `idle_timeout_s`. Once it is older than `lifetime_s`, the next answer is its last. A client may take nothing of an
    answer for `client_timeout_s`; how long an answer takes has no limit here. `max_receiving_bytes` is for all bodies
    together that are not complete.

    Raises InvalidParameter.
    """

    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    lifetime_s: float = 3600.0
    client_timeout_s: float = 60.0
    max_connections: int = 1024
    max_head_bytes: int = 2**15
    max_body_bytes: int = 4 * 2**20
    max_receiving_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        names = ("head_timeout_s", "body_timeout_s", "idle_timeout_s", "lifetime_s", "client_timeout_s")
        require_finite(self, *names)
        require_one(self, "max_connections", "max_head_bytes", "max_body_bytes", "max_receiving_bytes")
        if self.max_receiving_bytes < self.max_body_bytes:
            raise InvalidParameter(
                "The bodies together must be allowed as many bytes as one (max_receiving_bytes, max_body_bytes)."
            )


def require_finite(limits: object, *names: str) -> None:
    """Raises InvalidParameter unless each of these is a finite number above 0."""
    for name in names:
        if not 0 < getattr(limits, name) < float("inf"):
            raise InvalidParameter(f"{name} must be above 0.")


def require_one(limits: object, *names: str) -> None:
    """Raises InvalidParameter where one of these is below 1."""
    for name in names:
        if getattr(limits, name) < 1:
            raise InvalidParameter(f"{name} must be at least 1.")
