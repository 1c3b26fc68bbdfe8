"""An HTTP server with limits: aiohttp's application behind connections that are bounded in number and in time."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, web

from qwen3guard_apps.http_server.connection import Connection, log
from qwen3guard_apps.http_server.limits import HttpLimits
from qwen3guard_apps.http_server.refusals import kind_of_status, refusal, refused

BACKLOG = 256
"""How many connections the system holds for this process, and how many it takes at a time."""


class LimitedServer(web.Server):
    """Makes connections. Where there are more than `limits` allow, the one that has waited longest gives way."""

    def __init__(self, application: web.Server, limits: HttpLimits) -> None:
        super().__init__(self._answer, request_factory=self._request, handler_cancellation=True)
        self._application_handler = application.request_handler
        self._application_request = application.request_factory
        self._limits = limits
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}
        """Those that wait for their client, the longest first."""

    def __call__(self) -> Connection:
        return Connection(self, self, self._limits, self._loop)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        assert isinstance(handler, Connection)
        self._open.add(handler)
        while len(self._open) > self._limits.max_connections:
            oldest = next(iter(self._waiting), handler)
            self.left(oldest)
            oldest.give_way()

    def waits(self, connection: Connection) -> None:
        """From now on, `connection` waits for its client."""
        self._waiting.pop(connection, None)
        if connection in self._open:
            self._waiting[connection] = None

    def answers(self, connection: Connection) -> None:
        """From now on, the client of `connection` waits."""
        self._waiting.pop(connection, None)

    def left(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        protocol.begin(payload)
        return self._application_request(message, payload, protocol, writer, task)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The application's answer, or a fixed text for an error of aiohttp's, some of which quote the request."""
        if request.version not in (HttpVersion10, HttpVersion11):
            return _refused("bad_version")
        if _head_bytes(request) > self._limits.max_head_bytes:  # it came whole, and was not counted on its way
            return _refused("head_too_large")
        try:
            return await self._application_handler(request)
        except web.HTTPException as error:
            answer = _refused(kind_of_status(error.status))
            if allowed := error.headers.get("Allow"):
                answer.headers["Allow"] = allowed
            return answer


def _refused(kind: str) -> web.Response:
    log(kind)
    answer = refused(refusal(kind))
    answer.force_close()
    return answer


def _head_bytes(request: web.BaseRequest) -> int:
    """The bytes of a head's target and fields, without what is between them."""
    return len(request.raw_path) + sum(len(name) + len(value) for name, value in request.raw_headers)


def listen_error(error: OSError) -> str:
    """Why nobody can listen there, in the system's words; asyncio's repeat the address."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror)


class Listener:
    """An application that listens. `addresses` are those of its sockets."""

    def __init__(self, application: web.Application, limits: HttpLimits, *, ending_s: float) -> None:
        """Requests may take up to `ending_s` seconds to end."""
        self._runner = web.AppRunner(application, access_log=None)
        self._limits = limits
        self._ending_s = ending_s

    async def start(self, host: str, port: int) -> None:
        """Raises OSError where it cannot listen."""
        await self._runner.setup()
        assert self._runner.server
        self._server = LimitedServer(self._runner.server, self._limits)
        loop = asyncio.get_running_loop()
        try:
            self._listens = await loop.create_server(
                self._server, host, port, backlog=min(BACKLOG, self._limits.max_connections)
            )
        except OSError:
            await self._runner.cleanup()
            raise
        self.addresses: list[Any] = [each.getsockname() for each in self._listens.sockets]

    async def stop(self) -> None:
        self._listens.close()
        await asyncio.sleep(0)
        self._server.pre_shutdown()
        await self._runner.shutdown()
        await self._server.shutdown(self._ending_s)
        await self._runner.cleanup()
