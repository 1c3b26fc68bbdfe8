"""What the proxy counts, for Prometheus. A label has one of a few fixed values: no text, key or id is in one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NAME = "qwen3guard_proxy"
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
CLIENT_LEFT = 499
"""The status in the log of a request whose client left before the answer ended; nobody is told."""


class ProxyMetrics:
    """Of one proxy, from its start. What passes unjudged is counted from 0 at each of the `guarded` routes, so that an
    alert sees the first one."""

    def __init__(self, guarded: Iterable[str]) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests that were answered.", "route", "outcome")
        self._flagged = self._counter("flagged", "Requests whose prompt or answer was flagged.", "route", "by")
        self._unguarded = self._counter("unguarded", "Answers that passed as the guard could not judge them.", "route")
        for route in guarded:
            self._unguarded.labels(route)
        self._errors = self._counter("errors", "Requests that ended with an error.", "route", "code")
        self._removed = self._counter("removed_fields", "Fields of LLMs' answers that were removed.", "route")
        self._seconds = Histogram(
            f"{_NAME}_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            registry=self._registry,
            buckets=_BUCKETS_S,
        )
        self.in_flight = Gauge(f"{_NAME}_in_flight", "Requests that are answered now.", registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{_NAME}_{name}", text, labels, registry=self._registry)

    def count(self, route: str, seconds: float, record: Mapping[str, Any]) -> None:
        """`record` is the request's line in the log; `route` is one of the proxy's, or `?`."""
        status, flagged_by, code = record["status"], record.get("flagged_by"), record.get("error")
        self._requests.labels(route, _outcome(status, flagged_by, code)).inc()
        self._seconds.labels(route).observe(seconds)
        if flagged_by:
            self._flagged.labels(route, flagged_by).inc()
        if record.get("unguarded"):
            self._unguarded.labels(route).inc()
        if code:
            self._errors.labels(route, code).inc()
        if removed := record.get("removed"):
            self._removed.labels(route).inc(removed)

    def text(self) -> bytes:
        return generate_latest(self._registry)


def _outcome(status: int, flagged_by: str | None, code: str | None) -> str:
    if status == CLIENT_LEFT:
        return "left"
    if flagged_by:
        return "flagged"
    if status < 400 and not code:
        return "answered"
    return "refused" if 400 <= status < 500 else "failed"
