"""How many lost streams may be replayed at once. When a replica goes, its streams come to the others at one moment.

All at once, they would share the processor until the last has its text, and ask for their turns meanwhile: every one
would be late, and so would the streams that were here before.
"""

from __future__ import annotations

from collections.abc import Iterable

from qwen3guard_contract.errors import Overloaded

from qwen3guard_runtime.stream.session import Session
from qwen3guard_runtime.stream.steps import Step
from qwen3guard_runtime.telemetry.metrics import StreamMetrics

LEAST_REPLAYS = 2
"""So many are admitted however long they take."""
GUESSED = 8
"""So many are admitted at once before it is known how long one takes."""
WEIGHT = 0.2
"""Of the last replay in what the next one is expected to take."""


class Replays:
    """Admits as many as together take about `together_s` seconds of the graph's time, by what the last ones took."""

    def __init__(self, together_s: float, metrics: StreamMetrics) -> None:
        self._together_s = together_s
        self._metrics = metrics
        self._expected_s = together_s / GUESSED

    def admit(self, live: Iterable[Session], now_s: float) -> None:
        """One more replay would begin beside the `live` sessions. Raises Overloaded if as many as may be are on."""
        running = sum(session.is_replayed(now_s) for session in live)
        admitted = running < LEAST_REPLAYS or running * self._expected_s < self._together_s
        self._metrics.replayed(admitted=admitted)
        if not admitted:
            raise Overloaded("As many lost streams as may be are being replayed here; try again later.")

    def go_on(self, session: Session, step: Step) -> None:
        """A step of a session that is held begins. If it is no longer one of a replay, that is through."""
        if session.replay and not step.replay:
            self._expected_s += WEIGHT * (session.ran_s - self._expected_s)
        session.replay = step.replay
