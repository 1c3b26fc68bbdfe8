"""A streamed chat completion: each chunk of the LLM's goes on as it was, as soon as its text is cleared."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from qwen3guard_apps.openai import texts
from qwen3guard_apps.openai.api_error import ApiError, upstream_failed
from qwen3guard_apps.proxy import sse
from qwen3guard_apps.proxy.completion import ID_HEADER, RECORD, Completion, Place
from qwen3guard_apps.proxy.upstream import choices_of, parsed, unreadable

Chunk = dict[str, Any]
MOST_HELD = 64
"""Chunks that are held while a write waits for the client, before the LLM is read on."""


@dataclass(frozen=True)
class Held:
    """A chunk with one choice, whose text ends at `end`, or with no choice."""

    chunk: Chunk
    index: int | None = None
    end: int = 0
    finishes: bool = False


class StreamedCompletion(Completion):
    _response: web.StreamResponse | None = None

    def __init__(self, place: Place, request: web.Request, asked: dict[str, Any]) -> None:
        super().__init__(place, request, asked)
        self._held: deque[Held] = deque()
        self._finished: set[int] = set()
        self._last: Chunk | None = None
        self._begun: set[int] = set()
        """The choices of which a chunk was sent."""
        self._written = asyncio.Event()
        """Not set while a write waits for the client."""
        self._written.set()

    async def _take(self, answer: aiohttp.ClientResponse) -> None:
        if answer.content_type != "text/event-stream":
            raise upstream_failed("The LLM does not stream.", "upstream_unreadable")
        async for data in sse.events(self._place.upstream.pieces(answer)):
            if data == sse.DONE:
                return
            self._hold(parsed(data))
            self._changed.set()
            if len(self._held) >= MOST_HELD:  # a client that reads slowly slows the LLM
                await self._written.wait()
        raise upstream_failed("The LLM broke off.")

    def _hold(self, chunk: Any) -> None:
        """Raises ApiError for the LLM's own error, and for something that is not a chunk."""
        if isinstance(chunk, dict) and chunk.get("error"):
            raise _UpstreamError(chunk)
        entries = choices_of(chunk, "delta", len(self._choices))
        if not entries:
            self._held.append(Held(chunk))
        for number, (index, choice, delta) in enumerate(entries, start=1):
            texts.drop_unread(delta)
            text = texts.written(delta)
            judged = self._choices[index]
            finishes = choice.get("finish_reason") is not None
            if text and index in self._finished:
                raise unreadable()
            judged.write(text)
            if finishes:
                self._finished.add(index)
                judged.close()
            own_chunk = chunk if len(entries) == 1 else chunk | {"choices": [choice]}
            if number < len(entries) and "usage" in own_chunk:
                own_chunk = own_chunk | {"usage": None}
            self._held.append(Held(own_chunk, index, judged.length, finishes))

    async def _relay(self) -> web.StreamResponse:
        try:
            await self._send_all()
        except ApiError as error:
            if self._response is None:
                raise
            self.error = error
            await self._write(sse.event(error.body()))
        if self._response is None:
            assert self._refusal
            return self._refusal.response()
        await self._response.write_eof()
        return self._response

    async def _send_all(self) -> None:
        stops_sent: set[int] = set()
        while True:
            self._changed.clear()
            for chunk in self._cleared(stops_sent):
                await self._write(sse.event(chunk))
            self._raise_guards()
            if self._all_stopped or self._refusal:
                break
            if self._ended and not self._held and all(choice.final or choice.stopped for choice in self._choices):
                if self._failure:
                    raise self._failure
                break
            if not self._changed.is_set():
                await self._changed.wait()
        if not self._refusal:
            await self._write(sse.event(sse.DONE))

    def _cleared(self, stops_sent: set[int]) -> Iterator[Chunk]:
        """The chunks that may be sent now, in the LLM's order. The last chunk of a stopped choice has the flag.

        `stops_sent` has the choices whose last chunk was given.
        """
        stopping = self._settings.on_flag == "stop"
        while self._held and self._may_go(self._held[0]):
            held = self._held.popleft()
            self._last = held.chunk
            if held.index is None:
                yield held.chunk
            elif not self._choices[held.index].stopped:
                self._begun.add(held.index)
                yield self._marked(held)
            elif held.index not in stops_sent:
                for chunk in self._before_the_flag(held):
                    self._begun.add(held.index)
                    yield chunk
                if stopping and (held.end > self._choices[held.index].limit or held.finishes):
                    stops_sent.add(held.index)
                    yield self._stop(held.index)
        if not self._held and stopping:
            for index, choice in enumerate(self._choices):
                if choice.stopped and index not in stops_sent:
                    stops_sent.add(index)
                    yield self._stop(index)

    def _may_go(self, held: Held) -> bool:
        if held.index is None:
            return all(choice.begins or choice.stopped for choice in self._choices)
        choice = self._choices[held.index]
        return choice.stopped or (choice.releases(held.end) and (choice.final or not held.finishes))

    def _marked(self, held: Held) -> Chunk:
        assert held.index is not None
        choice = self._choices[held.index]
        if held.finishes or (choice.flag and held.end > choice.limit):
            held.chunk["choices"][0]["guard"] = choice.verdict()
        return held.chunk

    def _before_the_flag(self, held: Held) -> Iterator[Chunk]:
        """The chunk of a stopped choice, or the part of it before the flag, if there is one."""
        assert held.index is not None
        limit = self._choices[held.index].limit
        choice = held.chunk["choices"][0]
        length = len(texts.written(choice["delta"]))
        kept = limit - (held.end - length)
        if kept >= length and kept and not held.finishes:
            yield held.chunk
        elif kept > 0:
            cut = copy.deepcopy(held.chunk)
            texts.cut(cut["choices"][0]["delta"], kept)
            cut["choices"][0] |= {"logprobs": None, "finish_reason": None}
            yield cut

    def _stop(self, index: int) -> Chunk:
        delta = {} if index in self._begun else {"role": "assistant", "content": ""}
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": "content_filter",
            "guard": self._choices[index].verdict(),
        }
        like = self._last or self._empty("chat.completion.chunk", [])
        return {name: value for name, value in like.items() if name != "usage"} | {"choices": [choice]}

    async def _write(self, data: bytes) -> None:
        """Raises ConnectionError if the client reads nothing for too long."""
        if self._response is None:
            headers = self._headers | {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
            headers |= {"X-Accel-Buffering": "no", ID_HEADER: self._request[RECORD]["id"]}
            self._response = web.StreamResponse(headers=headers)
            await self._response.prepare(self._request)
        self._written.clear()
        try:
            async with asyncio.timeout(self._settings.client_timeout_s):
                await self._response.write(data)
        except TimeoutError:
            raise ConnectionResetError("The client reads nothing.") from None
        finally:
            self._written.set()


class _UpstreamError(ApiError):
    """The LLM's own error event, in its own words."""

    def __init__(self, event: Chunk) -> None:
        super().__init__(502, "upstream_error", "upstream_failed", "The LLM failed.")
        self._event = event

    def body(self) -> dict[str, Any]:
        return {"error": self._event["error"]}
