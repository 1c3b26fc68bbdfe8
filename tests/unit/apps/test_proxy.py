"""The proxy's events and settings."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from qwen3guard_apps.openai.request import read_request
from qwen3guard_apps.proxy import sse
from qwen3guard_apps.proxy.completion import Place
from qwen3guard_apps.proxy.proxy import add_arguments, settings_of
from qwen3guard_apps.proxy.settings import Settings
from qwen3guard_apps.proxy.streamed import MOST_HELD, StreamedCompletion
from qwen3guard_contract import errors
from support.fake_guard import MESSAGES, FakeGuard, Script
from support.texts import TEXTS, cut


def test_server_sent_events_are_read_however_they_are_cut() -> None:
    source = random.Random(3)
    data = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    for _ in range(50):
        newline = source.choice(["\n", "\r\n", "\r"])
        lines = [f": ping{newline}event: x{newline}data: {each}{newline}{newline}" for each in data]
        whole = "".join(lines).encode()
        whole = source.choice([b"", b"\xef\xbb\xbf"]) + source.choice([whole, whole.rstrip(), whole + b"data:"])
        pieces = cut(whole.decode("latin-1"), source, longest=source.choice([1, 7, 400]))

        async def torn(pieces: list[str] = pieces) -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece.encode("latin-1")

        async def read(torn: Callable[[], AsyncIterator[bytes]] = torn) -> list[str]:
            return [each async for each in sse.events(torn()) if each is not None]

        assert asyncio.run(read()) == data


@pytest.mark.parametrize(
    "wrong",
    [
        {"upstream": "llm:80"},
        {"upstream": "http://llm/v1?key=1"},
        {"on_flag": "shout"},
        {"confirm": "yes"},
        {"max_in_flight": 0},
        {"guard_timeout_s": float("inf")},
        {"head_timeout_s": 0.0},
        {"allow_hosts": frozenset({"guard.example:443"})},
        {"allow_hosts": frozenset({"https://guard.example"})},
    ],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidParameter):
        Settings(**wrong)


def test_the_options_of_the_command_line_are_the_settings() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert settings_of(parser.parse_args([])) == Settings()
    options = ["--upstream", "http://127.0.0.1:1/v1", "--confirm", "loose", "--on-flag", "mark"]
    assert settings_of(parser.parse_args(options)) == Settings(
        upstream="http://127.0.0.1:1/v1", on_flag="mark", confirm="loose"
    )


class Upstream:
    """An LLM that writes as fast as it is read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read = 0

    @asynccontextmanager
    async def call(self, *_: object) -> AsyncIterator[Any]:
        yield SimpleNamespace(status=200, content_type="text/event-stream", headers={})

    async def accepted(self, _: object) -> None:
        pass

    async def pieces(self, _: object) -> AsyncIterator[bytes]:
        for number in range(self.count):
            self.read += 1
            reason = "stop" if number == self.count - 1 else None
            yield sse.event({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": reason}]})
            await asyncio.sleep(0)
        yield sse.event(sse.DONE)


class PausingClient:
    """What the proxy writes to. It takes chunks while `reads` is set."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.taken: list[bytes] = []

    async def write(self, data: bytes) -> None:
        await self.reads.wait()
        self.taken.append(data)

    async def write_eof(self) -> None:
        pass


@pytest.mark.parametrize("release", ["after_check", "before_check"])
def test_a_client_that_pauses_slows_the_llm(release: Any) -> None:
    count = 20 * MOST_HELD
    upstream = Upstream(count)
    how = Settings(upstream="http://llm/v1", release=release)
    guard = FakeGuard(Script((("a", False),) * count))

    async def answer() -> list[bytes]:
        client = PausingClient()
        place = Place(
            how,
            cast(Any, SimpleNamespace(send=guard.asend, stream=lambda **_: guard.async_stream())),
            cast(Any, upstream),
        )
        request = cast(Any, SimpleNamespace(rel_url=SimpleNamespace(raw_query_string=""), headers={}))
        asked = {"messages": MESSAGES, "stream": True}
        completion = StreamedCompletion(place, request, read_request(asked))
        completion._response = cast(Any, client)
        answering = asyncio.create_task(completion.answer())
        for pause in range(3):
            for _ in range(20 * count):
                await asyncio.sleep(0)
            assert MOST_HELD <= upstream.read <= 2 * MOST_HELD + len(client.taken)
            client.reads.set()
            while pause < 2 and len(client.taken) < (pause + 1) * MOST_HELD:
                await asyncio.sleep(0)
            if pause < 2:
                client.reads.clear()
        await answering
        await asyncio.gather(*place.running, return_exceptions=True)
        return client.taken

    taken = asyncio.run(answer())
    assert upstream.read == count
    assert len(taken) == count + 1
    assert not guard.sessions
