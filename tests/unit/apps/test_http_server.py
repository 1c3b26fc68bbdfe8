"""The limits of the HTTP server of proxy and playground, on a socket of its own: who is slow, and what is not HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from qwen3guard_apps.http_server.body import Bodies
from qwen3guard_apps.http_server.callers import Callers
from qwen3guard_apps.http_server.limits import HttpLimits
from qwen3guard_apps.http_server.refusals import refused
from qwen3guard_apps.http_server.server import Listener
from qwen3guard_apps.openai.api_error import ApiError
from qwen3guard_contract import errors
from support.not_http import HEAD, MARKER, REFUSED, post

SOON_S = 0.2
PATIENCE_S = 30.0
GET = b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n"
MUCH = 2**24


ALSO_REFUSED: dict[str, tuple[int, bytes]] = {
    "websocket": (
        400,
        b"GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: " + MARKER + b"\r\nUpgrade: " + MARKER + b"\r\n\r\n",
    ),
    "websocket version": (
        400,
        b"GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: " + MARKER + b"\r\n\r\n",
    ),
    "failure": (500, GET % (b"fail?key=" + MARKER)),
    "path": (404, GET % (b"%ff" + MARKER + b"/../x")),
    "path's method": (405, b"DELETE /held?" + MARKER + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
}
"""By this application."""


@dataclass
class Served:
    port: int
    answering: asyncio.Event
    """Lets /held answer."""
    held: int = 0
    receiving: int = 0
    clients: list[Client] = field(default_factory=list)

    async def open(self) -> Client:
        self.clients.append(Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=2 * MUCH)))
        return self.clients[-1]

    async def ask(self, sent: bytes) -> tuple[int, bytes]:
        client = await self.open()
        await client.send(sent)
        return await client.answer()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body; 0 where the connection ends without an answer."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                return 0, b""
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            return int(head.split()[1]), await self.reader.readexactly(length)

    async def ends(self) -> bytes:
        """What still comes until the connection is closed."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read(-1)
            except ConnectionError:
                return b""


@asynccontextmanager
async def served(limits: HttpLimits) -> AsyncIterator[Served]:
    bodies = Bodies(limits)
    callers = Callers()
    found = Served(0, asyncio.Event())

    @web.middleware
    async def checked(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            callers.check(request)
            return await handler(request)
        except ApiError as error:
            return refused(error)

    async def length(request: web.Request) -> web.Response:
        found.receiving += 1
        return web.json_response(len(await bodies.receive(request)))

    async def hold(_: web.Request) -> web.Response:
        found.held += 1
        await found.answering.wait()
        return web.json_response("held")

    async def much(_: web.Request) -> web.Response:
        return web.Response(body=bytes(MUCH))

    async def fail(_: web.Request) -> web.Response:
        raise ValueError(MARKER)

    async def upgrade(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        return socket

    async def streamed(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "4"})
        await response.prepare(request)
        for _ in range(4):
            await asyncio.sleep(SOON_S)
            await response.write(b"x")
        return response

    application = web.Application(middlewares=[checked])
    application.router.add_post("/", length)
    for path, handler in (("held", hold), ("much", much), ("fail", fail), ("socket", upgrade), ("streamed", streamed)):
        application.router.add_get(f"/{path}", handler)
    listener = Listener(application, limits, ending_s=1)
    await listener.start("127.0.0.1", 0)
    found.port = listener.addresses[0][1]
    try:
        yield found
    finally:
        found.answering.set()
        for client in found.clients:
            client.writer.close()
            with contextlib.suppress(ConnectionError):
                await client.writer.wait_closed()
        await listener.stop()


def run(limits: HttpLimits, work: Callable[[Served], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        async with served(limits) as server:
            await work(server)

    asyncio.run(all_of_it())


async def trickle(client: Client, data: bytes) -> None:
    """A byte at a time, until nobody takes it."""
    for at in range(len(data)):
        try:
            await client.send(data[at : at + 1])
        except ConnectionError:
            return
        await asyncio.sleep(SOON_S / 20)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """The errors in the log."""
    with caplog.at_level(logging.DEBUG):
        yield lambda: [json.loads(each.message)["error"] for each in caplog.records if each.name == "qwen3guard.http"]
    assert MARKER.decode() not in caplog.text


@pytest.mark.parametrize("before", [b"", post(b"{}")], ids=["first", "kept"])
def test_a_head_that_trickles_is_closed_however_often_a_byte_comes(
    before: bytes, said: Callable[[], list[str]]
) -> None:
    async def work(server: Served) -> None:
        client = await server.open()
        if before:
            await client.send(before)
            assert await client.answer() == (200, b"2")
        trickling = asyncio.create_task(trickle(client, HEAD + b"X-Key: " + 4096 * MARKER))
        status, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (408, "slow_head")
        assert await client.ends() == b""
        trickling.cancel()

    run(HttpLimits(head_timeout_s=5 * SOON_S), work)
    assert said() == ["slow_head"]


def test_a_body_that_trickles_is_closed_however_often_a_byte_comes() -> None:
    async def work(server: Served) -> None:
        client = await server.open()
        await client.send(HEAD + b"Content-Length: 100000\r\n\r\n")
        trickling = asyncio.create_task(trickle(client, 4096 * MARKER))
        status, body = await client.answer()
        trickling.cancel()
        assert (status, json.loads(body)["error"]["code"]) == (408, "slow_body")
        assert await client.ends() == b""

    run(HttpLimits(body_timeout_s=5 * SOON_S), work)


def test_a_body_that_stops_being_http_is_answered_at_once() -> None:
    async def work(server: Served) -> None:
        client = await server.open()
        await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
        while not server.receiving:
            await asyncio.sleep(0)
        await client.send(MARKER + b"\r\n")
        status, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (400, "bad_body")

    run(HttpLimits(body_timeout_s=2 * PATIENCE_S), work)


@pytest.mark.parametrize("beside", [b"1;" + MUCH * b"x", b"0\r\n" + 100 * (b"X-Long: " + 9000 * b"x" + b"\r\n")])
def test_extensions_of_chunks_and_trailers_have_the_limit_of_a_head(beside: bytes) -> None:
    await_refused(beside)


def test_a_body_in_tiny_chunks_is_refused_and_one_in_small_chunks_is_read() -> None:
    """A chunk of one byte takes the time of one of many."""
    await_refused(20_000 * b"1\r\n \r\n")

    async def work(server: Served) -> None:
        client = await server.open()
        await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
        for _ in range(40):
            await client.send(100 * (b"40\r\n" + 64 * b" " + b"\r\n"))
        await client.send(b"0\r\n\r\n")
        assert (await client.answer())[0] == 200

    run(HttpLimits(body_timeout_s=2 * PATIENCE_S), work)


def await_refused(beside: bytes) -> None:
    async def work(server: Served) -> None:
        client = await server.open()
        await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
        while not server.receiving:
            await asyncio.sleep(0)
        client.writer.write(beside)
        status, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (431, "head_too_large")

    run(HttpLimits(body_timeout_s=2 * PATIENCE_S), work)


def test_each_head_of_a_kept_connection_may_be_as_long() -> None:
    async def work(server: Served) -> None:
        client = await server.open()
        for _ in range(5):
            sent = post(b"{}", b"X-Long: " + 600 * b"x")
            await client.send(sent[:500])
            await asyncio.sleep(SOON_S / 10)
            await client.send(sent[500:])
            assert await client.answer() == (200, b"2")

    run(HttpLimits(max_head_bytes=1000), work)


def test_a_head_that_comes_whole_has_the_same_limit() -> None:
    async def work(server: Served) -> None:
        client = await server.open()
        await client.send(post(b"{}", b"X-Long: " + 800 * b"x"))
        assert await client.answer() == (200, b"2")
        await client.send(post(b"{}", b"X-Long: " + 1000 * b"x"))
        status, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (431, "head_too_large")
        assert await client.ends() == b""

    run(HttpLimits(max_head_bytes=1000), work)


@pytest.mark.parametrize("before", [b"", post(b"{}")], ids=["first", "kept"])
def test_a_connection_without_a_request_is_closed_in_silence(before: bytes, said: Callable[[], list[str]]) -> None:
    async def work(server: Served) -> None:
        client = await server.open()
        if before:
            await client.send(before)
            assert await client.answer() == (200, b"2")
        assert await client.ends() == b""

    run(HttpLimits(head_timeout_s=SOON_S, idle_timeout_s=SOON_S), work)
    assert said() == []


def test_answers_may_take_longer_than_every_limit() -> None:
    async def work(server: Served) -> None:
        assert await server.ask(GET % b"streamed") == (200, b"xxxx")

    short = SOON_S / 2
    run(HttpLimits(short, short, short, short, short), work)


def test_an_old_connection_ends_with_an_answer() -> None:
    async def work(server: Served) -> None:
        client = await server.open()
        await client.send(post(b"{}"))
        assert b"close" not in (await client.reader.readuntil(b"\r\n\r\n")).lower()
        await client.reader.readexactly(1)
        await asyncio.sleep(2 * SOON_S)
        await client.send(post(b"{}"))
        assert b"connection: close" in (await client.ends()).lower()

    run(HttpLimits(lifetime_s=SOON_S), work)


def test_a_client_that_reads_nothing_is_closed(said: Callable[[], list[str]]) -> None:
    async def work(server: Served) -> None:
        client = await server.open()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET % b"much")
        async with asyncio.timeout(PATIENCE_S):
            while not said():
                await asyncio.sleep(SOON_S / 10)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await client.ends()) < MUCH

    run(HttpLimits(client_timeout_s=SOON_S), work)
    assert said() == ["unread_answer"]


def test_who_waits_longest_gives_way_and_who_answers_does_not() -> None:
    async def work(server: Served) -> None:
        held = await server.open()
        await held.send(GET % b"held")
        half_body, half_head, idle = [await server.open() for _ in range(3)]
        await half_body.send(post(b"{}")[:-1])
        await half_head.send(HEAD)
        await idle.send(post(b"{}"))
        assert await idle.answer() == (200, b"2")
        for _ in range(10):
            assert await server.ask(post(b"{}")) == (200, b"2")
        for slow in (half_body, half_head, idle):
            assert await slow.ends() == b""
        server.answering.set()
        assert await held.answer() == (200, b'"held"')

    run(HttpLimits(max_connections=4), work)


def test_where_all_are_being_answered_a_further_one_is_closed() -> None:
    async def work(server: Served) -> None:
        held = [await server.open() for _ in range(2)]
        for number, client in enumerate(held, start=1):
            await client.send(GET % b"held")
            while server.held < number:
                await asyncio.sleep(0)
        assert await (await server.open()).ends() == b""
        server.answering.set()
        assert [await client.answer() for client in held] == [(200, b'"held"')] * 2

    run(HttpLimits(max_connections=2), work)


def test_incomplete_bodies_have_a_limit_together_and_the_oldest_gives_way() -> None:
    async def work(server: Served) -> None:
        head = HEAD + b"Content-Length: 1000\r\n\r\n"
        slow = [await server.open() for _ in range(10)]
        for client in slow:
            await client.send(head + 600 * b"x")
        assert await server.ask(post(900 * b"x")) == (200, b"900")
        await slow[-1].send(400 * b"x")
        assert await slow[-1].answer() == (200, b"1000")
        for client in slow[:-2]:
            status, body = await client.answer()
            assert (status, json.loads(body)["error"]["code"]) == (503, "body_gave_way")

    run(HttpLimits(max_body_bytes=1000, max_receiving_bytes=2000), work)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(chunked: bool) -> None:
    async def work(server: Served) -> None:
        if chunked:
            asked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + 1001 * b"x" + b"\r\n"
        else:
            asked = HEAD + b"Content-Length: 1001\r\n\r\n"
        status, body = await server.ask(asked)
        assert (status, json.loads(body)["error"]["code"]) == (413, "too_large")

    run(HttpLimits(max_body_bytes=1000), work)


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("name", REFUSED | ALSO_REFUSED)
def test_what_is_not_http_gets_a_fixed_text_in_openais_form(
    name: str, cut: bool, said: Callable[[], list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    """Cut, the last bytes come when all before has been read."""
    expected, sent = (REFUSED | ALSO_REFUSED)[name]

    async def work(server: Served) -> None:
        client = await server.open()
        if cut:
            await client.send(sent[: -len(MARKER) - 3])
            await asyncio.sleep(SOON_S / 4)
        await client.send(sent[-len(MARKER) - 3 :] if cut else sent)
        status, body = await client.answer()
        assert status == expected
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert MARKER not in body.lower()

    run(HttpLimits(body_timeout_s=PATIENCE_S), work)
    said()
    assert MARKER.decode() not in "".join(capfd.readouterr()).lower()


def test_requests_in_a_row_are_answered_in_order_and_few_are_kept() -> None:
    async def work(server: Served) -> None:
        client = await server.open()
        bodies = [bytes(size) for size in (3, 1000, 0, 7)]
        await client.send(b"".join(map(post, bodies)))
        assert [await client.answer() for _ in bodies] == [(200, b"%d" % len(body)) for body in bodies]
        await client.send(MARKER)
        assert (await client.answer())[0] == 400
        flood = await server.open()
        await flood.send(GET % b"held")
        for _ in range(100):
            await flood.send(post(20_000 * b"x"))
            await asyncio.sleep(0)
        server.answering.set()
        answers = [await flood.answer()]
        while answers[-1][0] == 200:
            answers.append(await flood.answer())
        assert 1 < len(answers) < 50

    run(HttpLimits(), work)


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ([b"Host: localhost:1"], True),
        ([b"Host: LOCALHOST"], True),
        ([b"Host: localhost."], True),
        ([b"Host: 127.8.9.10:65535"], True),
        ([b"Host: [::1]:8010"], True),
        ([b"Host: 0.0.0.0:8010"], False),
        ([b"Host: 10.0.0.1"], False),
        ([b"Host: localhost.evil.example"], False),
        ([b"Host: 127.0.0.1.evil.example"], False),
        ([b"Host: evil.example@localhost"], False),
        ([b"Host: localhost:80:80"], False),
        ([b"Host: [::1"], False),
        ([b"Host: localhost:1", b"Origin: http://localhost:1"], True),
        ([b"Host: localhost:1", b"Origin: http://localhost:2"], False),
        ([b"Host: localhost:1", b"Origin: http://127.0.0.1:1"], False),
        ([b"Host: localhost:1", b"Origin: http://localhost:1", b"Origin: https://evil.example"], False),
        ([b"Host: localhost:1", b"Origin: null"], False),
        ([b"Host: localhost:1", b"Origin:"], False),
        ([b"Host: localhost:1", b"Origin: file://localhost:1"], False),
        ([b"Host: localhost:1", b"Origin: http://[localhost:1"], False),
        ([b"Host: localhost:1", b"Sec-Fetch-Site: cross-site"], False),
        ([b"Host: localhost:1", b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Mode: navigate"], False),
        ([b"Host: localhost:1", b"Sec-Fetch-Site: same-origin"], True),
        ([b"Host: localhost:1", b"Origin: http://localhost:1", b"Sec-Fetch-Site: cross-site"], False),
        ([b"Host: localhost:1", b"Origin: http://localhost:1", b"Sec-Fetch-Site: same-origin"], True),
        ([b"Host: localhost:1", b"Sec-Fetch-Site: same-origin", b"Sec-Fetch-Site: cross-site"], False),
        ([b"Host: localhost:1", b"Content-Type: application/json; charset=utf-8"], True),
        ([b"Host: localhost:1", b"Content-Type: text/plain"], False),
        ([b"Host: localhost:1", b"Content-Type: application/json, text/plain"], False),
    ],
)
def test_pages_of_elsewhere_are_refused(headers: list[bytes], passes: bool) -> None:
    if not any(line.startswith(b"Content-Type") for line in headers):
        headers = [*headers, b"Content-Type: application/json"]

    async def work(server: Served) -> None:
        asked = b"\r\n".join([b"POST / HTTP/1.1", *headers, b"Content-Length: 2", b"", b"{}"])
        assert ((await server.ask(asked))[0] == 200) == passes

    run(HttpLimits(), work)


@pytest.mark.parametrize(
    "wrong",
    [
        {"head_timeout_s": 0},
        {"body_timeout_s": float("nan")},
        {"idle_timeout_s": float("inf")},
        {"lifetime_s": -1},
        {"max_connections": 0},
        {"max_head_bytes": 0},
        {"max_body_bytes": 2, "max_receiving_bytes": 1},
    ],
)
def test_limits_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidParameter):
        HttpLimits(**wrong)
