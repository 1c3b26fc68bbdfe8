"""A streamed chat completion: each chunk of the LLM's goes on as it was, as soon as its text is cleared."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from qwen3guard_apps.openai.api_error import ApiError, upstream_failed
from qwen3guard_apps.openai.choice import ChatChoice, unreadable
from qwen3guard_apps.proxy import sse
from qwen3guard_apps.proxy.completion import ID_HEADER, RECORD, Completion, Place
from qwen3guard_apps.proxy.upstream import LlmError

Chunk = dict[str, Any]
MOST_HELD = 64
"""Chunks that are held while a write waits for the client, before the LLM is read on."""


FINISH_S = 2.0
"""How long an LLM that has finished every choice may take to end its stream."""
KEEP_ALIVE_S = 15.0
"""After so long without anything to send, the client gets a comment."""


@dataclass
class Held:
    """A chunk with one choice, whose text ends at `end`, or with no choice."""

    chunk: Chunk
    entry: ChatChoice | None = None
    end: int = 0

    @property
    def finishes(self) -> bool:
        return self.entry is not None and self.entry.finishes


class StreamedCompletion(Completion):
    _response: web.StreamResponse | None = None

    def __init__(self, place: Place, request: web.Request, asked: dict[str, Any]) -> None:
        super().__init__(place, request, asked)
        self._held: deque[Held] = deque()
        self._tail: list[Held] = []
        """Chunks without a choice, such as the usage: they follow all others."""
        self._finishing: dict[int, Held] = {}
        """The chunk that finishes a choice. It is held until the LLM's end, since some LLMs finish every chunk."""
        self._seen: set[int] = set()
        """The choices of which the LLM has sent anything."""
        self._streams = False
        """Whether the LLM has begun to answer."""
        self._comments = False
        """Whether the LLM has sent a comment that was not passed on."""
        self._begun: set[int] = set()
        """The choices of which a chunk was sent."""
        self._written = asyncio.Event()
        """Not set while a write waits for the client."""
        self._written.set()

    async def _take(self, answer: aiohttp.ClientResponse) -> None:
        if answer.content_type == "application/json":
            self._take_whole(self._parsed(await self._place.upstream.whole(answer)))
        elif not await self._take_events(sse.events(self._place.upstream.pieces(answer))):
            if not self._streams:
                raise upstream_failed("The LLM does not stream.", "upstream_unreadable")
            if not self._seen or self._seen - self._finishing.keys():
                raise upstream_failed("The LLM broke off.")
        self._finish()

    async def _take_events(self, events: AsyncIterator[str | None]) -> bool:
        """Returns whether the LLM has said that it is done. It may also just end."""
        while True:
            is_finished = len(self._finishing) == len(self._choices)
            try:
                async with asyncio.timeout(FINISH_S if is_finished else None):
                    data = await anext(events, sse.END)
            except TimeoutError:
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
                self._take_event(data, is_finished=is_finished)
            self._changed.set()
            if len(self._held) >= MOST_HELD:  # a client that reads slowly slows the LLM
                await self._written.wait()

    def _take_event(self, data: str, *, is_finished: bool) -> None:
        """Raises LlmError for the LLM's own error, and ApiError for what cannot be read."""
        try:
            body = self._parsed(data)
        except LlmError:
            raise
        except ApiError:
            if is_finished:  # a torn end, after all was said
                return
            raise
        if isinstance(body, dict):
            self._hold(body)
        self._streams = True

    def _take_whole(self, body: Any) -> None:
        """The LLM answers a request for a stream in one piece: it becomes one chunk for each choice."""
        if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
            raise unreadable()
        for entry in self._answer.read(body, "message"):
            entry.choice["delta"] = entry.choice.pop("message")
            entry.key = "delta"
            self._hold_entry(entry, {})
        if usage := self._answer.usage(body):
            self._tail.append(Held(self._chunk([]) | usage))
        self._streams = True

    def _hold(self, body: dict[str, Any]) -> None:
        entries = self._answer.read(body, "delta")
        usage = self._answer.usage(body)
        for number, entry in enumerate(entries, start=1):
            self._hold_entry(entry, usage if number == len(entries) else dict.fromkeys(usage))
        if not entries and usage.get("usage"):
            self._tail.append(Held(self._chunk([]) | usage))

    def _hold_entry(self, entry: ChatChoice, usage: Chunk) -> None:
        index = entry.index
        judged = self._choices[index]
        judged.write(entry.text)
        held = Held(self._chunk([entry.choice]) | usage, entry, judged.length)
        if earlier := self._finishing.pop(index, None):
            assert earlier.entry
            reason, earlier.entry.choice["finish_reason"] = earlier.entry.choice["finish_reason"], None
            if not entry.finishes:
                entry.choice["finish_reason"] = reason
        if entry.finishes:
            self._finishing[index] = held
        self._seen.add(index)
        self._held.append(held)

    def _finish(self) -> None:
        """The LLM has ended: what it left out is added."""
        for index in sorted(self._seen or {0}):
            content = self._answer.rest(index)
            if content or index not in self._finishing:
                delta = {"content": content} if content else {}
                finish = {"choices": [{"index": index, "delta": delta, "finish_reason": "stop"}]}
                if index in self._finishing:
                    finish["choices"][0]["finish_reason"] = None
                for entry in self._answer.read(finish, "delta"):
                    self._hold_entry(entry, {})
        self._held.extend(self._tail)

    def _chunk(self, choices: list[dict[str, Any]]) -> Chunk:
        return {"object": "chat.completion.chunk"} | self._answer.head | {"choices": choices}

    async def _relay(self) -> web.StreamResponse:
        try:
            await self._send_all()
        except ApiError as error:
            if self._response is None:
                raise
            self.error = error
            await self._write(sse.event(error.body()))
        assert self._response
        await self._response.write_eof()
        return self._response

    async def _send_all(self) -> None:
        stops_sent: set[int] = set()
        while True:
            self._changed.clear()
            for chunk in self._ready(stops_sent):
                await self._write(sse.event(chunk))
            self._raise_guards()
            if self._all_stopped:
                break
            if self._ended and not self._held and all(choice.final or choice.stopped for choice in self._choices):
                if self._failure:
                    raise self._failure
                break
            await self._keep_alive()
        await self._write(sse.event(sse.DONE))

    async def _keep_alive(self) -> None:
        """Waits for a change. The client gets the head as soon as it may get an answer, and comments meanwhile."""
        may_begin = self._streams and all(choice.begins or choice.stopped for choice in self._choices)
        is_begun = self._response is not None
        may_comment = self._comments if is_begun else self._settings.on_flag != "error"
        if may_begin and may_comment:
            self._comments = False
            await self._write(sse.COMMENT)
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                await self._changed.wait()
        except TimeoutError:
            if may_begin:
                await self._write(sse.COMMENT)

    def _ready(self, stops_sent: set[int]) -> Iterator[Chunk]:
        """The chunks that may be sent now, in the LLM's order. The last chunk of a stopped choice has the flag.

        `stops_sent` has the choices whose last chunk was given.
        """
        stopping = self._settings.on_flag == "stop"
        while self._held and self._may_go(self._held[0]):
            held = self._held.popleft()
            if held.entry is None:
                yield held.chunk
                continue
            index = held.entry.index
            if not self._choices[index].stopped:
                self._begun.add(index)
                yield self._marked(held, held.entry)
            elif index not in stops_sent:
                for chunk in self._before_the_flag(held, held.entry):
                    self._begun.add(index)
                    yield chunk
                if stopping and (held.end > self._choices[index].limit or held.finishes):
                    stops_sent.add(index)
                    yield self._stop(index)
        if not self._held and stopping:
            for index, choice in enumerate(self._choices):
                if choice.stopped and index not in stops_sent:
                    stops_sent.add(index)
                    yield self._stop(index)

    def _may_go(self, held: Held) -> bool:
        if held.entry is None:
            return all(choice.begins or choice.stopped for choice in self._choices)
        choice = self._choices[held.entry.index]
        return choice.stopped or (choice.releases(held.end) and (choice.final or not held.finishes))

    def _marked(self, held: Held, entry: ChatChoice) -> Chunk:
        choice = self._choices[entry.index]
        if held.finishes or (choice.flag and held.end > choice.limit):
            entry.choice["guard"] = choice.verdict()
        return held.chunk

    def _before_the_flag(self, held: Held, entry: ChatChoice) -> Iterator[Chunk]:
        """The chunk of a stopped choice, or the part of it before the flag, if there is one."""
        length = len(entry.text)
        kept = self._choices[entry.index].limit - (held.end - length)
        if kept <= 0:
            return
        if kept < length or held.finishes:
            entry.cut(kept)
            entry.choice["finish_reason"] = None
        yield held.chunk

    def _stop(self, index: int) -> Chunk:
        delta = {} if index in self._begun else {"role": "assistant", "content": ""}
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": "content_filter",
            "guard": self._choices[index].verdict(),
        }
        return self._chunk([choice])

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
