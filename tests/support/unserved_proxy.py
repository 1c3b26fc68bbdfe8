"""A proxy's completion without sockets: the bytes of an LLM's answer go in, and those that a client gets come out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar, cast

from qwen3guard_apps.doors.door import ChatDoor, Door
from qwen3guard_apps.openai.api_error import ApiError
from qwen3guard_apps.proxy.completion import RECORD, Completion, Place
from qwen3guard_apps.proxy.settings import Settings
from qwen3guard_apps.proxy.streamed import StreamedCompletion
from qwen3guard_apps.proxy.upstream import Upstream
from qwen3guard_apps.proxy.whole import WholeCompletion

from support.word_guard import WordGuard

PAUSE = 12
"""How often the loop turns before a piece comes: the guard has judged what came before."""


@dataclass(frozen=True)
class LlmAnswer:
    pieces: Sequence[bytes]
    status: int = 200
    content_type: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)

    async def iter_any(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            for _ in range(PAUSE):
                await asyncio.sleep(0)
            yield piece

    @property
    def content(self) -> LlmAnswer:
        return self


class _Upstream(Upstream):
    def __init__(self, settings: Settings, answer: LlmAnswer) -> None:
        self._limit = settings.max_response_bytes
        self._answered = answer

    @asynccontextmanager
    async def call(self, *_: object) -> AsyncIterator[Any]:
        yield self._answered


class _Client:
    def __init__(self) -> None:
        self.taken: list[bytes] = []

    async def write(self, data: bytes) -> None:
        self.taken.append(data)

    async def write_eof(self) -> None:
        pass


@dataclass(frozen=True)
class Received:
    """What the client got; `status` is that of an error before anything was sent, else 200."""

    status: int
    text: str
    headers: dict[str, str]

    @property
    def events(self) -> list[Any]:
        data = [line[6:] for line in self.text.split("\n") if line.startswith("data: ")]
        return [json.loads(each) for each in data if each != "[DONE]"]


def receive(
    answer: LlmAnswer, asked: dict[str, Any], *, door: Door | None = None, begun: bool = True, **settings: Any
) -> Received:
    """A stream has `begun` if its head is sent already: then errors are events."""
    how = Settings(upstream="http://llm/v1", **settings)
    return asyncio.run(_receive(answer, asked, how, door or ChatDoor(), begun=begun))


async def _receive(
    answer: LlmAnswer, asked: dict[str, Any], settings: Settings, door: Door, *, begun: bool
) -> Received:
    place = Place(settings, cast(Any, WordGuard()), _Upstream(settings, answer))
    request: Any = {RECORD: {"id": "0"}}
    request = _Request(request)
    kind: type[Completion] = StreamedCompletion if asked.get("stream") else WholeCompletion
    client = _Client()
    try:
        completion = kind(place, request, door.read(asked, settings.pass_fields), door)
        if begun and isinstance(completion, StreamedCompletion):
            completion._response = cast(Any, client)
        response = await completion.answer()
    except ApiError as error:
        return Received(error.status, json.dumps(door.error(error), ensure_ascii=False), error.headers)
    finally:
        ends = await asyncio.gather(*place.running, return_exceptions=True)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends), ends
    if isinstance(completion, StreamedCompletion):
        return Received(200, b"".join(client.taken).decode(), completion._headers)
    return Received(200, cast(Any, response).text, dict(response.headers))


class _Request(dict[Any, Any]):
    rel_url = SimpleNamespace(raw_query_string="")
    headers: ClassVar[dict[str, str]] = {}
