"""Proxy and playground as processes under attack: slow clients, what is not HTTP, pages of elsewhere, a stalled log."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import httpx
import pytest
from flood import KINDS, Flood, call_for
from qwen3guard_apps.playground.server import MOST_STREAMS
from qwen3guard_server.server import EmbeddedServer
from support.command import COMMAND
from support.fake_llm import FakeLLM
from support.not_http import MARKER, REFUSED

ASKED = {"model": "fake", "messages": [{"role": "user", "content": "How do I bake bread?"}]}
PIPE_BYTES = 2**20
"""More than a pipe and the log's own queue hold together."""


class Running:
    """A process that serves; once it has ended, `said` is what it wrote to standard error."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self.process = process
        self.url = json.loads(process.stdout.readline())["url"]
        self.port = urlsplit(self.url).port or 0
        self.said = ""


@contextmanager
def running(*words: str, files: int = 4096) -> Iterator[Running]:
    """The process may have so many files open, and may not raise that."""
    command: list[str | Path] = [COMMAND, *words, "--port", "0", "--json"]
    limited = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command]
    with subprocess.Popen(limited, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            started = Running(process)
            yield started
        finally:
            process.terminate()
            started.said = process.communicate(timeout=60)[1]
            assert process.returncode == 0


def proxy_words(server: EmbeddedServer, llm: FakeLLM, *options: str) -> list[str]:
    return ["proxy", "--url", server.url, "--upstream", llm.url, *options]


def asked_raw(port: int, data: bytes) -> tuple[bytes, bytes]:
    """The head and the body of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client, client.makefile("rb") as received:
        client.sendall(data)
        head = b"".join(iter(received.readline, b"\r\n"))
        length = next(int(line[15:]) for line in head.splitlines() if line.lower().startswith(b"content-length:"))
        return head, received.read(length)


@pytest.mark.parametrize("kind", ["proxy", "playground"])
def test_what_is_not_http_is_told_by_its_kind(stream_server: EmbeddedServer, llm: FakeLLM, kind: str) -> None:
    """Whatever path it goes to, with keys and texts in every place."""
    path, own = b"POST /v1/moderations HTTP", b"Host: localhost\r\n"
    words = proxy_words(stream_server, llm)
    if kind == "playground":
        path, own = b"POST /classify HTTP", b"Host: localhost\r\nOrigin: http://localhost\r\n"
        words = ["playground", "--url", stream_server.url]
    with running(*words) as server:
        for name, (status, data) in REFUSED.items():
            sent = data.replace(b"POST / HTTP", path).replace(b"Host: localhost\r\n", own)
            head, body = asked_raw(server.port, sent)
            assert head.split()[1] == b"%d" % status, name
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}, name
            assert MARKER not in (head + body).lower(), name
    assert server.said.count('"error"') >= len(REFUSED) / 2
    assert MARKER.decode() not in server.said.lower()
    assert "Traceback" not in server.said


def test_bodies_that_are_costly_to_read_keep_nobody_waiting(stream_server: EmbeddedServer, llm: FakeLLM) -> None:
    """Gigabytes in a small compressed body; more values than any conversation has; one that takes long to read."""
    url_of = "{}/chat/completions".format
    compressed = gzip.compress(bytes(2**28), mtime=0)
    headers = {"Content-Type": "application/json"}
    parts = [{"type": "text", "text": "x"}] * 30_000
    slow = json.dumps({"model": "fake", "messages": [{"role": "user", "content": parts}]})
    many = json.dumps(ASKED | {"tools": list(range(200_000))})
    with running(*proxy_words(stream_server, llm)) as proxy, ThreadPoolExecutor(1) as apart:
        url = url_of(proxy.url)
        refused = httpx.post(url, content=compressed, headers=headers | {"Content-Encoding": "gzip"}, timeout=60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (415, "compressed")
        refused = httpx.post(url, content=many, headers=headers, timeout=60)
        assert (refused.status_code, "more than 100,000 values" in refused.text) == (400, True)
        reading = apart.submit(httpx.post, url, content=slow, headers=headers, timeout=60)
        answered = 0
        while not reading.done():
            answered += httpx.get(f"http://127.0.0.1:{proxy.port}/health", timeout=60).status_code == 200
        assert reading.result().status_code == 400  # longer than the guard's context
        assert answered > 3


def test_a_page_of_elsewhere_reaches_neither_the_llm_nor_the_guard(stream_server: EmbeddedServer, llm: FakeLLM) -> None:
    with running(*proxy_words(stream_server, llm, "--allow-host", "guard.example")) as proxy:
        url, port = f"{proxy.url}/chat/completions", proxy.port
        for headers, status in (
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "https://evil.example", "Content-Type": "text/plain"}, 403),
            ({"Host": "evil.example"}, 403),
            ({"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"}, 403),
            ({"Origin": "http://localhost:3000"}, 403),
            ({"Content-Type": "text/plain"}, 415),
            ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ):
            refused = httpx.post(url, content=json.dumps(ASKED), headers={"Content-Type": "application/json"} | headers)
            assert refused.status_code == status, headers
            assert refused.json()["error"]["type"] == "invalid_request_error"
        assert httpx.get(f"{proxy.url}/models", headers={"Host": "evil.example"}).status_code == 403
        assert httpx.options(url, headers={"Origin": "https://evil.example"}).status_code == 403
        assert llm.started == 0
        for headers in (
            {"Host": "guard.example"},
            {"Host": "GUARD.example:443", "Origin": "https://guard.example"},
            {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"},
        ):
            assert httpx.post(url, json=ASKED, headers=headers, timeout=60).status_code == 200, headers
        assert llm.started == 3


def test_elsewhere_than_on_loopback_every_host_and_no_foreign_page(stream_server: EmbeddedServer, llm: FakeLLM) -> None:
    with running(*proxy_words(stream_server, llm, "--host", "0.0.0.0")) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/v1/chat/completions"
        assert httpx.post(url, json=ASKED, headers={"Host": "guard.lan"}, timeout=60).status_code == 200
        for headers in ({"Origin": "https://evil.example"}, {"Content-Type": "text/plain"}):
            refused = httpx.post(url, content=json.dumps(ASKED), headers={"Content-Type": "application/json"} | headers)
            assert refused.status_code in (403, 415)
        assert llm.started == 1


@pytest.mark.trial
def test_honest_requests_are_answered_while_a_flood_stands(stream_server: EmbeddedServer, llm: FakeLLM) -> None:
    """More slow connections than the proxy takes. They are closed, each in its turn."""
    limits = {"head-timeout": "1", "body-timeout": "1", "idle-timeout": "1", "max-connections": "200"}
    options = [word for name, value in limits.items() for word in (f"--{name}", value)]

    async def beside(port: int) -> tuple[Counter[int], Counter[str]]:
        flood = Flood(port, KINDS["mixed"], byte_s=0.1)
        standing = asyncio.create_task(flood.stand(300))
        while flood.opened.total() < 300:
            await asyncio.sleep(0.01)
        statuses: Counter[int] = Counter()
        while min(flood.closed[kind] for kind in KINDS["mixed"]) < 50:
            await call_for(port, 0.5, [], statuses)
        standing.cancel()
        await asyncio.gather(standing, return_exceptions=True)
        return statuses, flood.closed

    with running(*proxy_words(stream_server, llm, *options, "--max-in-flight", "8")) as proxy:
        statuses, _ = asyncio.run(beside(proxy.port))
    assert set(statuses) == {200}
    assert "Traceback" not in proxy.said


def test_half_requests_take_no_place(stream_server: EmbeddedServer, llm: FakeLLM) -> None:
    """Sixty-four of them once made every other request wait for a 429."""
    half = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    half += b"Content-Length: 100000\r\n\r\n{"
    with running(*proxy_words(stream_server, llm, "--max-in-flight", "4")) as proxy:
        slow = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(64)]
        for client in slow:
            client.sendall(half)
        for _ in range(5):
            assert httpx.post(f"{proxy.url}/chat/completions", json=ASKED, timeout=60).status_code == 200
        for client in slow:
            client.close()


def test_few_open_files_allow_fewer_connections_and_that_is_said(stream_server: EmbeddedServer, llm: FakeLLM) -> None:
    with running(*proxy_words(stream_server, llm), files=700) as proxy:
        idle = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(800)]
        for _ in range(5):
            assert httpx.post(f"{proxy.url}/chat/completions", json=ASKED, timeout=60).status_code == 200
        for client in idle:
            client.close()
    assert "the limit of open files (700) allows" in proxy.said


@pytest.mark.parametrize("reader", ["stalled", "gone"])
def test_who_does_not_read_the_log_holds_up_no_answer(stream_server: EmbeddedServer, llm: FakeLLM, reader: str) -> None:
    """The log's pipe is full before the first request, or has nobody at its other end."""
    reading, writing = os.pipe()
    command: list[str | Path] = [COMMAND, *proxy_words(stream_server, llm), "--port", "0", "--json"]
    if reader == "stalled":
        os.set_blocking(writing, False)
        try:
            while True:
                os.write(writing, PIPE_BYTES * b"\n")
        except BlockingIOError:
            os.set_blocking(writing, True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writing, text=True) as process:
        os.close(writing)
        if reader == "gone":
            os.close(reading)
        try:
            proxy = Running(process)
            with ThreadPoolExecutor(4) as threads:
                answers = threads.map(
                    lambda _: httpx.post(f"{proxy.url}/chat/completions", json=ASKED, timeout=60).status_code, range(20)
                )
                assert set(answers) == {200}
            for _ in range(3):
                assert asked_raw(proxy.port, REFUSED["control"][1])
        finally:
            process.terminate()
            process.wait(60)
            if reader == "stalled":
                os.close(reading)
    assert process.returncode == 0


def test_streams_of_the_playground_leave_room_for_its_page(stream_server: EmbeddedServer) -> None:
    async def too_many(port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession(headers={"Origin": url}) as page, AsyncExitStack() as stack:
            for _ in range(MOST_STREAMS):
                await stack.enter_async_context(page.ws_connect(f"{url}/stream"))
            async with page.get(f"{url}/stream", headers={"Upgrade": "websocket", "Connection": "upgrade"}) as refused:
                assert refused.status == 503
            async with page.get(url) as shown:
                assert shown.status == 200

    with running("playground", "--url", stream_server.url) as server:
        asyncio.run(too_many(server.port))
