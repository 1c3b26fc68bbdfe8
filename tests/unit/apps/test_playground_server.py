"""The playground's server in this process, without a guard behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import ClientSession, WSMsgType
from qwen3guard_apps.playground import server as playground
from qwen3guard_client.aio import AsyncGuardClient


@asynccontextmanager
async def served() -> AsyncIterator[tuple[ClientSession, str]]:
    """A client, and the address of the server."""
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with AsyncGuardClient("127.0.0.1:9") as guard, asyncio.TaskGroup() as tasks, ClientSession() as client:
        tasks.create_task(playground.serve_until(stop, guard, 0, address.set_result))
        yield client, await address
        stop.set()


def test_pings_do_not_prolong_the_wait_for_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground, "PAGE_LIMITS", replace(playground.PAGE_LIMITS, body_timeout_s=0.5))

    async def ask() -> None:
        async with served() as (client, url), client.ws_connect(f"{url}/stream", origin=url) as socket:

            async def ping() -> None:
                while not socket.closed:
                    await socket.ping()
                    await asyncio.sleep(0.05)

            pinging = asyncio.create_task(ping())
            async with asyncio.timeout(20):
                assert (await socket.receive()).type is WSMsgType.CLOSE
            pinging.cancel()

    asyncio.run(ask())


@pytest.mark.parametrize(
    "wrong", [{"Sec-WebSocket-Version": "12"}, {"Sec-WebSocket-Key": "x"}, {"Upgrade": "h2c"}, {"Connection": "close"}]
)
def test_what_is_no_handshake_is_told_so(wrong: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "a-protocol-of-the-caller",
    }

    async def ask() -> None:
        async with served() as (client, url):
            headers = {"Origin": url} | handshake
            async with client.get(f"{url}/stream", headers=headers | wrong) as refused:
                assert (refused.status, (await refused.json())["error"]["code"]) == (400, "not_websocket")
                assert refused.headers["Sec-WebSocket-Version"] == "13"
            async with client.get(f"{url}/stream", headers=headers) as accepted:
                assert accepted.status == 101

    with caplog.at_level(logging.WARNING):
        asyncio.run(ask())
    assert "protocol" not in caplog.text
