"""The pauses between attempts to reach a server that has gone away, or that admits no more replays for now."""

from __future__ import annotations

import random

from qwen3guard_client.transport.connection import RETRY_S

LONGEST_RETRY_S = 2.0


class Pauses:
    """Each pause is up to twice as long as the one before, and random: the clients of a server that is lost must not
    all come to another at one moment, again and again."""

    def __init__(self) -> None:
        self._longest_s = RETRY_S

    def next_s(self, left_s: float) -> float | None:
        """The next pause in seconds; None if there is no time for another attempt within `left_s`."""
        if left_s <= RETRY_S:
            return None
        pause_s = random.uniform(self._longest_s / 2, self._longest_s)
        self._longest_s = min(2 * self._longest_s, LONGEST_RETRY_S)
        return min(pause_s, left_s - RETRY_S)
