"""Keeps Triton's metrics endpoint up to date with what a model counts, through families that its caller makes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from qwen3guard_runtime.telemetry.metrics import Metric, Sample

FLUSH_S = 1.0
"""Seconds between updates. Each change is a call to the server and back, so nothing is sent when it is counted."""


class MetricsEndpoint:
    """Sends all values at once, and from then on every FLUSH_S those that have changed, in a thread, until `close`.

    `new_family` makes a Triton MetricFamily for a sample, and may raise; its errors come out of the constructor.
    """

    def __init__(self, metrics: Sequence[Metric], new_family: Callable[[Sample], Any]) -> None:
        self._metrics = metrics
        self._new_family = new_family
        self._families: dict[str, Any] = {}
        """Triton's families by name. They are kept because a family that is dropped takes its series with it."""
        self._series: dict[tuple[object, ...], Any] = {}
        self._sent: dict[tuple[object, ...], float] = {}
        self._failing = False
        self.flush()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_flushing, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Sends the last changes and drops all series: one that outlived the model would crash its process."""
        self._closed.set()
        self._thread.join()
        self._try_to_flush()
        self._series.clear()
        self._families.clear()

    def flush(self) -> None:
        """Sends the values that have changed."""
        for metric in self._metrics:
            for sample in metric.samples():
                key = (sample.name, sample.labels)
                if key not in self._series:
                    self._series[key] = self._new_series(sample)
                change = sample.value - self._sent.get(key, 0.0)
                if change and sample.kind == "counter":
                    self._series[key].increment(change)
                elif change:
                    self._series[key].set(sample.value)
                self._sent[key] = sample.value

    def _new_series(self, sample: Sample) -> Any:
        if sample.name not in self._families:
            self._families[sample.name] = self._new_family(sample)
        return self._families[sample.name].Metric(labels=dict(sample.labels))

    def _keep_flushing(self) -> None:
        while not self._closed.wait(FLUSH_S):
            self._try_to_flush()

    def _try_to_flush(self) -> None:
        """What cannot be sent now is sent the next time. The log says so once for all failures in a row."""
        try:
            self.flush()
            self._failing = False
        except Exception as error:
            if not self._failing:
                logging.getLogger(__name__).error("metrics cannot be sent: %s", type(error).__name__)
            self._failing = True
