"""The proxy's routes, described once: as OpenAPI, and as a page."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from qwen3guard_apps.doors.all_doors import DOORS
from qwen3guard_apps.openai.fields import Table

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = "body{font:16px sans-serif;margin:2em;max-width:60em}td{padding:.3em 1em .3em 0;vertical-align:top}"
_ERROR = {"type": "object", "properties": {"error": {"type": "object"}}}


class Route(NamedTuple):
    method: str
    path: str
    summary: str
    fields: Table
    """Of its body, where the proxy reads it field by field."""


def routes(paths: Collection[str]) -> list[Route]:
    """Those of `paths`, which the proxy answers."""
    described = {path: Route("POST", path, door.summary, door.fields) for path, door in DOORS.items()}
    for method, path, summary in (
        ("POST", "/v1/moderations", "Judges texts, or a conversation with its answer, in OpenAI's form."),
        ("POST", "/beta/litellm_basic_guardrail_api", "LiteLLM's generic guardrail API."),
        ("GET", "/v1/models", "The models of the LLM, and the guard's own."),
        ("GET", "/health", "Whether the guard is ready."),
        ("GET", "/metrics", "What the proxy counts, for Prometheus."),
        ("GET", "/openapi.json", "This description."),
        ("GET", "/docs", "This description as a page."),
    ):
        described[path] = Route(method, path, summary, {})
    unjudged = "Goes to the LLM and back UNJUDGED, as the operator has said (--pass-route)."
    return [described.get(path) or Route("POST", path, unjudged, {}) for path in paths]


def description(paths: Collection[str], *, with_key: bool) -> dict[str, Any]:
    """OpenAPI 3.1. `with_key` says that callers must send the proxy's own key."""
    schemes = {"key": {"type": "http", "scheme": "bearer"}} if with_key else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "qwen3guard proxy", "version": "1", "description": "Guards the APIs of LLMs by Qwen3Guard."},
        "paths": {route.path: {route.method.lower(): _operation(route)} for route in routes(paths)},
        "components": {"securitySchemes": schemes},
        "security": [{"key": []}] if with_key else [],
    }


def _operation(route: Route) -> dict[str, Any]:
    answers = {"200": {"description": "The answer."}}
    failed = {"description": "An error in the API's own form.", "content": {"application/json": {"schema": _ERROR}}}
    operation: dict[str, Any] = {"summary": route.summary, "responses": answers}
    if route.method == "POST":
        properties = {name: {"description": f"{shape.becomes}: {shape.says}"} for name, shape in route.fields.items()}
        schema = {"type": "object", "properties": properties}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        operation["responses"] = answers | {"4XX": failed, "5XX": failed}
    return operation


def page(paths: Collection[str]) -> str:
    """The same in HTML."""
    return "".join(_lines(routes(paths)))


def _lines(described: list[Route]) -> Iterator[str]:
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>qwen3guard proxy</title><style>{_STYLE}</style>"
    yield "<h1>qwen3guard proxy</h1><p>As OpenAPI: <a href=openapi.json>openapi.json</a></p><table>"
    for route in described:
        yield f"<tr><td><code>{route.method} {html.escape(route.path)}</code><td>{html.escape(route.summary)}"
    yield "</table></html>"
