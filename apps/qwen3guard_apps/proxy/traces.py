"""OpenTelemetry's traces of requests: a span for each, with what its line in the log says, and no text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SERVICE = "qwen3guard-proxy"
_TOLD = ("id", "flagged_by", "unguarded", "unjudged", "error", "removed")
"""Of a line in the log."""


class Traces:
    """Spans go to `processor`, or by OTLP over HTTP to where OpenTelemetry's own variables say."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}), shutdown_on_exit=False)
        self._provider.add_span_processor(processor or _exporting())
        self._tracer = self._provider.get_tracer("qwen3guard_apps")

    @contextmanager
    def span(self, method: str, route: str, headers: Mapping[str, str], record: Mapping[str, Any]) -> Iterator[None]:
        """A request's, in the trace of its caller's, if it names one. `record` is read at the end."""
        name = next((name for name in headers if name.lower() == "traceparent"), None)
        context = TraceContextTextMapPropagator().extract({"traceparent": headers[name]} if name else {})
        with self._tracer.start_as_current_span(
            f"{method} {route}", context, trace.SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            finally:
                told = {f"qwen3guard.{name}": record[name] for name in _TOLD if record.get(name) is not None}
                status = record.get("status", 0)
                span.set_attributes({"http.request.method": method, "http.route": route, **told})
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_status(trace.StatusCode.ERROR)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def _exporting() -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return BatchSpanProcessor(OTLPSpanExporter())
