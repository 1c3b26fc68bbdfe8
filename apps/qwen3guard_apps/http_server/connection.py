"""One connection: aiohttp's, with limits of time and size that it does not have, and without its own words for errors.

A connection either waits for its client (for a head, a body, or the next request) or answers. Who waits too long is
closed; who waits longest gives way where there are too many connections (server.py).
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum, auto
from typing import Any, Protocol

from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage
from qwen3guard_contract.log_output import line

from qwen3guard_apps.http_server.limits import FIELD_BYTES, LINE_BYTES, MOST_HEADERS, HttpLimits
from qwen3guard_apps.http_server.receipt import Receipt
from qwen3guard_apps.http_server.refusals import kind_of, raw_response, refusal, refused

_LOG = logging.getLogger("qwen3guard.http")
DATA_FOR_FRAMES = 8
"""How many bytes of a body's data allow one more byte beside them. A chunk of a byte costs six, and as much time as one
of many."""
LINGER_S = 2.0
"""How long a refused client may take to read why, and what it still sends is thrown away."""


class _State(Enum):
    IDLE = auto()
    HEAD = auto()
    BUSY = auto()
    """A whole head is in."""
    REFUSED = auto()


class Connections(Protocol):
    """Who counts the connections, and hears what each of them waits for."""

    def waits(self, connection: Connection) -> None: ...

    def answers(self, connection: Connection) -> None: ...

    def left(self, connection: Connection) -> None: ...


class Connection(web.RequestHandler):
    def __init__(
        self, server: web.Server, connections: Connections, limits: HttpLimits, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            logger=_LOG,
            access_log=None,  # type: ignore[arg-type]  # aiohttp's own way to have none
            max_line_size=LINE_BYTES,
            max_field_size=FIELD_BYTES,
            max_headers=MOST_HEADERS,
            lingering_time=LINGER_S,
            auto_decompress=False,  # a small body may unpack to gigabytes; `Bodies` refuses it
        )
        self._connections = connections
        self._limits = limits
        self._state = _State.IDLE
        self._opened = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        """Of a head that is being received, or of what came before its turn."""
        self._body_bytes = 0
        """Of a body that is being received, with all that is beside its data."""
        self._payload: StreamReader | None = None
        self.broken = False
        """Whether what came last is not HTTP. Nothing more is read."""
        self.receipt: Receipt | None = None
        """The body that is being read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._wait(_State.IDLE, self._limits.head_timeout_s)

    def connection_lost(self, exc: BaseException | None) -> None:
        for timer in (self._timer, self._unread):
            if timer:
                timer.cancel()
        self._connections.left(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.broken:
            return
        # Whether it is of a request that has not begun. aiohttp calls this without data to read on.
        is_ahead = bool(data) and (self._payload is None or self._payload.is_eof()) and not self._upgraded
        if self._state is _State.IDLE and is_ahead:
            self._wait(_State.HEAD, self._limits.head_timeout_s, prolong=self._payload is not None)
        try:
            super().data_received(data)
        except Exception as error:  # asyncio would log it with its words
            self._refuse(kind_of(error))
            return
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            self._break_off("bad_body")
        elif self._state is _State.BUSY and self._payload and not self._payload.is_eof():
            self._body_bytes += len(data)
            received = self._payload.total_bytes
            beside = self._body_bytes - received  # sizes and extensions of chunks, and trailers
            if beside > self._limits.max_head_bytes + received // DATA_FOR_FRAMES:
                self._break_off("head_too_large")
        elif is_ahead and not (self._state is _State.HEAD and self._messages):
            self._head_bytes += len(data)
            if self._head_bytes <= self._limits.max_head_bytes:
                return
            if self._state is _State.HEAD:
                self._refuse("head_too_large")
            else:  # a client that does not wait for answers gets this one, and must ask again for the others
                self.broken = True

    def begin(self, payload: Any) -> None:
        """A request's head is in, and its answer begins."""
        self._stop_timer()
        self._state = _State.BUSY
        self._head_bytes = self._body_bytes = 0
        self._payload = payload
        self._connections.waits(self)
        payload.on_eof(lambda: self._connections.answers(self))

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        is_old = self._loop.time() - self._opened > self._limits.lifetime_s
        if is_old or (self.broken and not self._messages):
            resp.force_close()
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            if self.transport is not None:
                self._wait(_State.IDLE, self._limits.idle_timeout_s)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self._loop.call_later(self._limits.client_timeout_s, self._end, "unread_answer")

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:
            self._unread.cancel()

    def give_way(self) -> None:
        """Ends, for there are too many connections and this one has waited longest."""
        self._end("connection_gave_way")

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # it quotes the request
    ) -> web.StreamResponse:
        kind = kind_of(exc) if status < 500 else "internal"
        log(kind, exception=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError
        answer = refused(refusal(kind))
        answer.force_close()
        return answer

    def log_exception(self, *_: Any, exc_info: BaseException | None = None, **__: Any) -> None:
        log("internal", exception=type(exc_info).__name__)

    def _break_off(self, kind: str) -> None:
        """Reads no more, also not of the body that is being received."""
        self.broken = True
        if self.receipt:
            self.receipt.refuse(kind)

    def _wait(self, state: _State, seconds: float, *, prolong: bool = True) -> None:
        """Waits for the client. Without `prolong`, the time that has begun goes on."""
        self._state = state
        if prolong:
            self._stop_timer()
            self._timer = self._loop.call_later(seconds, self._expire)
            self._connections.waits(self)

    def _expire(self) -> None:
        if self._state is _State.HEAD and not self._messages:
            self._refuse("slow_head")
        elif self._state is not _State.HEAD:
            self._end(None)

    def _refuse(self, kind: str) -> None:
        """Says why to a client whose request has not begun, and hears no more of it."""
        log(kind)
        self.broken = True
        self._stop_timer()
        if self._state is not _State.HEAD or self.transport is None:
            self._end(None)
            return
        self._state = _State.REFUSED
        self.transport.write(raw_response(kind))
        self.transport.write_eof()
        self._timer = self._loop.call_later(LINGER_S, self._expire)

    def _end(self, kind: str | None) -> None:
        """Closes at once, whatever was not sent: a client that reads nothing would keep a slower end from coming."""
        if kind:
            log(kind)
        if self.transport is not None:
            self.transport.abort()

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()


def log(kind: str, **facts: str) -> None:
    """Writes what went wrong, in words of our own alone."""
    _LOG.warning(line("warning", "http", error=kind, **facts))
