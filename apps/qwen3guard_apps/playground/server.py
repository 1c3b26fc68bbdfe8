"""The page's files, Gen's verdict, and one guard stream for each WebSocket, on loopback alone.

A page of another site cannot use it: the Host must be this machine's own name, and an Origin this very server, so
neither a foreign page nor a name that was rebound to 127.0.0.1 gets an answer. No text is logged.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from qwen3guard_client.aio import AsyncGuardClient
from qwen3guard_client.stream.aio import AsyncStream
from qwen3guard_contract.errors import GuardError, InvalidRequest, PortBusy, TextTooLong
from qwen3guard_contract.verdict import TokenVerdict

LOOPBACK = "127.0.0.1"
OWN_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")
MESSAGE_BYTES = 2**20
"""Of one request; the longest text that a context of 32,768 tokens takes has half of it."""
PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
GUARD: web.AppKey[AsyncGuardClient] = web.AppKey("guard", AsyncGuardClient)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def serve(guard: AsyncGuardClient, port: int, ready: Callable[[str], None]) -> None:
    """Until it is cancelled. `ready` is told the page's address. Raises PortBusy."""
    runner = web.AppRunner(application(guard), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, LOOPBACK, port).start()
        except OSError as error:
            raise PortBusy(f"Port {port} on {LOOPBACK} cannot be used: {error.strerror}.") from None
        ready(f"http://{LOOPBACK}:{runner.addresses[0][1]}")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def application(guard: AsyncGuardClient) -> web.Application:
    app = web.Application(middlewares=[own_page_only], client_max_size=MESSAGE_BYTES)
    app[GUARD] = guard
    app.on_response_prepare.append(close_up)
    for file in sorted(PAGE.iterdir()):
        app.router.add_get("/" if file.name == "index.html" else f"/{file.name}", content(file))
    app.router.add_get("/about", about)
    app.router.add_get("/stream", stream)
    app.router.add_post("/classify", classify)
    return app


@web.middleware
async def own_page_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    asks = request.method != "GET" or request.path == "/stream"
    origin = request.headers.get("Origin")
    if not OWN_HOST.fullmatch(request.host) or ((asks or origin) and origin != f"http://{request.host}"):
        raise web.HTTPForbidden(text="The playground answers its own page alone.")
    return await handler(request)


async def close_up(request: web.Request, response: web.StreamResponse) -> None:
    """The page may load what stands beside it, speak to this server, and be in no frame."""
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"connect-src 'self' ws://{request.host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["Cache-Control"] = "no-store"


def content(file: Path) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=file.read_bytes(), content_type=TYPES[file.suffix], charset="utf-8")

    return handler


async def about(request: web.Request) -> web.Response:
    return web.json_response({"guard": request.app[GUARD].url})


async def classify(request: web.Request) -> web.Response:
    """Gen's verdict over {"prompt", "response" or null}, as the client gives it, or {"error", "code"}."""
    try:
        asked = _fields(await request.read(), prompt=str, response=str | None)
        found = await request.app[GUARD].classify(**asked)
    except web.HTTPRequestEntityTooLarge:
        return web.json_response(_failure(TextTooLong("The text is too long for one message.")))
    except GuardError as error:
        return web.json_response(_failure(error))
    return web.Response(text=found.as_json(), content_type="application/json")


async def stream(request: web.Request) -> web.WebSocketResponse:
    """One response: {"prompt"} opens it, {"text"} is a step, {"text": null} the end.

    Each is answered once, in order; an error ends it.
    """
    socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES, heartbeat=30)
    await socket.prepare(request)
    try:
        await _moderate(request.app[GUARD], socket)
    except GuardError as error:
        await _send(socket, _failure(error))
    await socket.close()
    return socket


async def _moderate(guard: AsyncGuardClient, socket: web.WebSocketResponse) -> None:
    opening = await socket.receive()
    if opening.type is not WSMsgType.TEXT:
        return
    asked = _fields(opening.data, prompt=str)
    async with guard.stream(asked["prompt"]) as moderated:
        await _send(socket, {"prompt": moderated.prompt_verdict.as_dict(), "notice": moderated.notice})
        known: Sequence[TokenVerdict] = ()
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                return
            text = _fields(message.data, text=str | None)["text"]
            known = await _step(moderated, text, known, socket)
            if text is None:
                return


async def _step(
    stream: AsyncStream, text: str | None, known: Sequence[TokenVerdict], socket: web.WebSocketResponse
) -> Sequence[TokenVerdict]:
    """Sends the verdicts from the first one on that is not among the `known`."""
    began = time.perf_counter()
    await (stream.finish() if text is None else stream.step(text))
    took = 1000 * (time.perf_counter() - began)
    found = stream.verdicts
    kept = min(len(known), len(found))
    kept = next((index for index in range(kept) if known[index] is not found[index]), kept)
    tokens = [token.as_dict() for token in found[kept:]]
    await _send(socket, {"kept": kept, "tokens": tokens, "ms": round(took, 2)})
    return found


async def _send(socket: web.WebSocketResponse, message: Mapping[str, Any]) -> None:
    """To a page that may have left."""
    if not socket.closed:
        try:
            await socket.send_json(message)
        except ConnectionResetError:
            await socket.close()


def _fields(text: str | bytes, /, **kinds: Any) -> dict[str, Any]:
    """The JSON object in `text`, if it has the fields `kinds`. Raises InvalidRequest."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    right = isinstance(found, dict) and found.keys() == kinds.keys()
    if not right or not all(isinstance(found[name], kind) for name, kind in kinds.items()):
        raise InvalidRequest(f"The message is no JSON object of {', '.join(kinds)}.")
    return dict(found)


def _failure(error: GuardError) -> dict[str, str]:
    return {"error": str(error), "code": error.code}
