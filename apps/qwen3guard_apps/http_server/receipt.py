"""One body while it is received."""

from __future__ import annotations

import asyncio


class Receipt:
    """A body of which `size` bytes are here."""

    def __init__(self, timeout: asyncio.Timeout) -> None:
        self.size = 0
        self.kind = "slow_body"
        """Why it ends early, if it does."""
        self._timeout = timeout

    def refuse(self, kind: str) -> None:
        """Ends it early."""
        self.kind = kind
        self._timeout.reschedule(asyncio.get_running_loop().time())
