"""A streamed answer: each chunk of the LLM's goes on as soon as its text is cleared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from functools import partial

import aiohttp
from aiohttp import HttpVersion11, web

from qwen3guard_apps.doors.door import Door, DoorEvent
from qwen3guard_apps.openai.api_error import ApiError, proxy_failed, upstream_failed
from qwen3guard_apps.openai.request import GuardedRequest
from qwen3guard_apps.proxy import sse
from qwen3guard_apps.proxy.chunks import Chunks, ReadChunk
from qwen3guard_apps.proxy.completion import ID_HEADER, RECORD, Completion, Place
from qwen3guard_apps.proxy.upstream import LlmError

MOST_HELD = 64
"""Chunks that are held while a write waits for the client, before the LLM is read on."""
FINISH_S = 2.0
"""How long an LLM that has finished every choice may take to end its stream."""
FINISH_WITH_TEXT_S = 30.0
"""The same where text came with the finish: the LLM may be one that finishes every chunk, and pause."""
HEAD_S = 1.0
"""How long the head waits for the LLM's first event, which may be an error with a status of its own."""
KEEP_ALIVE_S = 15.0
"""After so long without anything to send, the client gets a comment."""


class StreamedCompletion(Completion):
    """The LLM answers in server-sent events, and the client gets such."""

    _response: web.StreamResponse | None = None

    def __init__(self, place: Place, request: web.Request, read: GuardedRequest, door: Door | None = None) -> None:
        super().__init__(place, request, read, door)
        self._chunks = Chunks(self._answer, self._choices, stopping=self._settings.on_flag == "stop")
        self._is_accepted = False
        """Whether the LLM has promised a stream."""
        self._streams = False
        """Whether the LLM has begun to answer."""
        self._comments = False
        """Whether the LLM has sent a comment that was not passed on."""
        self._written = asyncio.Event()
        """Not set while a write waits for the client."""
        self._written.set()

    async def _take(self, answer: aiohttp.ClientResponse) -> None:
        try:
            await self._take_all(answer)
        except BaseException:
            self._chunks.break_off()
            raise
        self._chunks.end()

    async def _take_all(self, answer: aiohttp.ClientResponse) -> None:
        self._is_accepted = answer.content_type == "text/event-stream"
        self._changed.set()
        if answer.content_type == "application/json":
            data = await self._place.upstream.whole(answer)
            self._chunks.take_whole(await self._place.readers.read(len(data), partial(self._read_whole, data)))
        elif not await self._take_events(sse.events(self._place.upstream.pieces(answer))):
            if not self._streams:
                raise upstream_failed("The LLM does not stream.", "upstream_unreadable")
            if not self._chunks.is_usable:
                raise upstream_failed("The LLM broke off.")

    def _read_whole(self, data: bytes) -> ReadChunk:
        return self._chunks.read_whole(self._door.read_whole(self._parsed(data)))

    async def _take_events(self, events: AsyncIterator[str | None]) -> bool:
        """Returns whether the LLM has said that it is done. It may also just end, or break off after all was said."""
        while True:
            is_finished = self._chunks.is_finished
            wait_s = FINISH_WITH_TEXT_S if self._chunks.finishes_with_text else FINISH_S
            try:
                async with asyncio.timeout(wait_s if is_finished else None):
                    data = await anext(events, sse.END)
            except (TimeoutError, aiohttp.ClientError, ConnectionError):
                if is_finished:
                    return True
                raise
            if data == sse.END:
                return False
            if data is None:
                self._comments = self._streams = True
            elif data.strip() == sse.DONE:
                return True
            else:
                await self._take_event(data)
            self._changed.set()
            if self._door.ended:
                return True
            await asyncio.sleep(0)  # one piece of an LLM's can have thousands of events: others have their turn
            if len(self._chunks) >= MOST_HELD:  # a client that reads slowly slows the LLM
                await self._written.wait()

    async def _take_event(self, data: str) -> None:
        """Raises LlmError for the LLM's own error, and ApiError for what cannot be read."""
        for chunk in await self._place.readers.read(len(data), partial(self._read_event, data)):
            self._chunks.take(chunk)
        self._streams = True

    def _read_event(self, data: str) -> list[ReadChunk]:
        try:
            body = self._parsed(data)
        except LlmError:
            raise
        except ApiError:
            if self._chunks.is_finished:  # a torn end, after all was said
                return []
            raise
        chunks = self._door.read_event(body) if isinstance(body, dict) else ()
        return [self._chunks.read(chunk) for chunk in chunks]

    async def _relay(self) -> web.StreamResponse:
        try:
            await self._send_all()
        except ConnectionError:
            raise
        except Exception as error:
            if self._response is None:
                raise
            self.error = error if isinstance(error, ApiError) else proxy_failed(error)
            await self._write_events([self._door.error(self.error)])
        assert self._response
        await self._response.write_eof()
        return self._response

    async def _send_all(self) -> None:
        while True:
            self._changed.clear()
            if self._response is None:  # an error that comes before everything else keeps its HTTP status
                self._raise_guards()
            for chunk in self._chunks.cleared():
                await self._write_events(self._door.events(chunk))
            self._raise_guards()
            if self._all_stopped:
                break
            if self._ended and not self._chunks and all(choice.final or choice.stopped for choice in self._choices):
                if self._failure:
                    raise self._failure
                break
            await self._wait()
        await self._write_events(self._door.end())

    async def _wait(self) -> None:
        """Waits for a change. The client gets the head as soon as it may get an answer, and comments meanwhile."""
        may_begin = all(choice.begins or choice.stopped for choice in self._choices)
        is_begun = self._response is not None
        # An error that ends an answer before its first word keeps its HTTP status.
        is_early = not is_begun and self._settings.on_flag != "error"
        if may_begin and self._streams and (self._comments if is_begun else is_early):
            self._comments = False
            await self._write(sse.COMMENT)
            is_early = False
        try:
            async with asyncio.timeout(HEAD_S if is_early and may_begin and self._is_accepted else KEEP_ALIVE_S):
                await self._changed.wait()
        except TimeoutError:
            if may_begin and (self._streams or self._is_accepted):
                await self._write(sse.COMMENT)

    async def _write_events(self, events: Iterable[DoorEvent]) -> None:
        if written := b"".join(sse.event(data, name) for name, data in events):
            await self._write(written)

    async def _write(self, data: bytes) -> None:
        """Raises ConnectionError if the client reads nothing for too long."""
        if self._response is None:
            headers = self._headers | {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
            headers |= {"X-Accel-Buffering": "no", ID_HEADER: self._request[RECORD]["id"]}
            self._response = web.StreamResponse(headers=headers)
            if self._request.version < HttpVersion11:  # without chunks, the end of the connection is the answer's
                self._response.force_close()
            await self._response.prepare(self._request)
        self._written.clear()
        try:
            async with asyncio.timeout(self._settings.client_timeout_s):
                await self._response.write(data)
                await asyncio.sleep(0)  # a write that the system takes at once lets nobody else run
        except TimeoutError:
            raise ConnectionResetError("The client reads nothing.") from None
        finally:
            self._written.set()
