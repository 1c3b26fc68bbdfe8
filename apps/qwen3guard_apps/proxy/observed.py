"""What becomes of each request beside its answer: who may ask, an error's form, a line in the log, a count, a span.

A line has an id, the route, the status, the time and what was flagged; never a text, a key or a query.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

from aiohttp import web
from qwen3guard_contract.log_output import line

from qwen3guard_apps.doors.door import Door
from qwen3guard_apps.http_server.callers import Callers
from qwen3guard_apps.http_server.refusals import refused
from qwen3guard_apps.openai.api_error import ApiError, proxy_failed
from qwen3guard_apps.proxy.completion import ID_HEADER, RECORD
from qwen3guard_apps.proxy.metrics import CLIENT_LEFT, ProxyMetrics
from qwen3guard_apps.proxy.own_key import OwnKey

if TYPE_CHECKING:
    from qwen3guard_apps.proxy.traces import Traces

LOG = logging.getLogger("qwen3guard.proxy")
RouteHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPEN_ROUTES = ("/health", "/metrics", "/openapi.json", "/docs")
"""Routes that ask for no key: nothing of a request's is told there."""
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
"""The methods that the log names."""


class Observed:
    """`refusal` is the sentence for a route that there is not. `doors` are by their routes."""

    def __init__(
        self,
        callers: Callers,
        key: OwnKey,
        metrics: ProxyMetrics,
        traces: Traces | None,
        *,
        doors: Mapping[str, Door],
        refusal: str,
    ) -> None:
        self._callers = callers
        self._key = key
        self._metrics = metrics
        self._traces = traces
        self._doors = doors
        self._refusal = refusal

    @web.middleware
    async def middleware(self, request: web.Request, handler: RouteHandler) -> web.StreamResponse:
        began = time.monotonic()
        name = uuid.uuid4().hex
        record = request[RECORD] = {"id": name}
        method = request.method if request.method in _METHODS else "?"
        route, status = _route(request), CLIENT_LEFT
        span = self._traces.span(method, route, request.headers, record) if self._traces else nullcontext()
        with span:
            try:
                response = await self._answered(request, handler)
                status = response.status
                if not response.prepared:
                    response.headers[ID_HEADER] = name
                return response
            except ConnectionError:
                return web.Response(status=CLIENT_LEFT)
            finally:
                seconds = time.monotonic() - began
                record |= {"route": f"{method} {route}", "status": status, "ms": round(seconds * 1000)}
                self._metrics.count(route, seconds, record)
                LOG.info(line("info", "request", **record))

    async def _answered(self, request: web.Request, handle: RouteHandler) -> web.StreamResponse:
        try:
            self._callers.check(request)
            if _route(request) not in OPEN_ROUTES:
                self._key.check(request.headers)
            return await handle(request)
        except ApiError as error:
            failure = error
        except web.HTTPException as error:
            if error.status not in (404, 405):
                raise
            failure = ApiError(error.status, "invalid_request_error", "not_relayed", self._refusal)
            if allowed := error.headers.get("Allow"):
                failure.headers["Allow"] = allowed
        except ConnectionError:
            raise
        except Exception as error:
            failure = proxy_failed(error)
        request[RECORD]["error"] = failure.code
        door = self._doors.get(_route(request))
        return refused(failure, door.error(failure) if door else None)


def _route(request: web.Request) -> str:
    """One of the proxy's own, or `?`."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else "?"
