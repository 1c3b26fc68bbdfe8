"""How many lost streams may be replayed at once. When a replica goes, its streams come to the others at one moment.

All at once, they would share the processor until the last has its text, and ask for their turns meanwhile: every one
would be late, and so would the streams that were here before.
"""

from __future__ import annotations

LEAST = 2
"""So many are admitted however long they take."""
GUESSED = 8
"""So many are admitted at once before it is known how long one takes."""
WEIGHT = 0.2
"""Of the last replay in what the next one is expected to take."""


class Replays:
    """Admits as many as together take about `together_s` seconds of the graph's time, by what the last ones took."""

    def __init__(self, together_s: float) -> None:
        self._together_s = together_s
        self._expected_s = together_s / GUESSED

    def admits(self, running: int) -> bool:
        """Whether one more may begin beside so many."""
        return running < LEAST or running * self._expected_s < self._together_s

    def ended(self, took_s: float) -> None:
        """One is through, and took so many seconds of the graph's time."""
        self._expected_s += WEIGHT * (took_s - self._expected_s)
