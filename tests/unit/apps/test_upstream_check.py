"""What the proxy says at its start of an LLM that is not there, or is not what --upstream says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from qwen3guard_apps.proxy.upstream_check import complaint

MODELS = {"object": "list", "data": [{"id": "m"}]}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(**paths: Handler) -> AsyncIterator[str]:
    """A server in this process that answers GET /NAME/models by each handler; `root` answers /models."""
    application = web.Application()
    for name, handler in paths.items():
        application.router.add_get("/models" if name == "root" else f"/{name}/models", handler)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def models(_: web.Request) -> web.StreamResponse:
    return web.json_response(MODELS)


def answers(status: int, **how: str) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers=how)

    return handler


def said(path: str, **paths: Handler) -> str | None:
    async def ask() -> str | None:
        async with serving(**paths) as url:
            return await complaint(url + path)

    return asyncio.run(ask())


@pytest.mark.parametrize("status", [401, 403, 429])
def test_an_api_that_wants_a_key_or_is_busy_is_there(status: int) -> None:
    assert said("/v1", v1=answers(status)) is None


def test_an_api_is_there_and_gets_no_key() -> None:
    heads: list[web.Request] = []

    async def listed(request: web.Request) -> web.StreamResponse:
        heads.append(request)
        return await models(request)

    assert said("/v1", v1=listed) is None
    assert said("/v1/", v1=listed) is None
    assert all("Authorization" not in each.headers and "Cookie" not in each.headers for each in heads)
    assert len(heads) == 2


@pytest.mark.parametrize("path", ["", "/"])
def test_a_base_url_without_its_v1_is_corrected(path: str) -> None:
    found = said(path, v1=models)
    assert found is not None
    assert found.endswith("/v1.")
    assert "give --upstream http://127.0.0.1:" in found


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (answers(404), "HTTP 404, unlike OpenAI's API: see that --upstream is the base URL"),
        (
            answers(302, Location="https://me:secret@elsewhere.example/login?token=secret"),
            "redirects to https://elsewhere.example/login",
        ),
        (answers(503), "HTTP 503 and may still be starting"),
        (answers(200), "answers, but not as OpenAI's API does"),
    ],
)
def test_what_is_no_api_is_told(handler: Handler, words: str) -> None:
    found = said("/v1", v1=handler)
    assert found is not None
    assert words in found
    assert "secret" not in found


def test_nobody_and_a_silent_server_and_one_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"SSH-2.0-x\r\n")
        writer.close()

    async def ask() -> list[str | None]:
        found = []
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
            found.append(await complaint(url, 0.1))
        found.append(await complaint(url))
        async with await asyncio.start_server(other, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            found += [await complaint(f"{scheme}://user:secret@127.0.0.1:{port}/v1") for scheme in ("http", "https")]
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        return [*found, await complaint("http://llm.invalid/v1")]

    found = [each or "" for each in asyncio.run(ask())]
    for sentence, words in zip(
        found,
        (
            "does not answer within 0.1 s",
            "cannot be reached (Connection refused): start the LLM",
            "does not speak HTTP",
            "does not speak TLS",
            "the variable http_proxy is not used for the LLM",
        ),
        strict=True,
    ):
        assert words in sentence
        assert "secret" not in sentence
