"""The playground's server: the page's files, Gen's verdict, and one guard stream for each WebSocket, on loopback alone.

A page of another site cannot use it: the Host must be loopback's, and an Origin must be this server. So a foreign page
gets no answer, nor does a foreign name that was rebound to 127.0.0.1. No text is logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from qwen3guard_client.aio import AsyncGuardClient
from qwen3guard_client.stream.aio import AsyncStream
from qwen3guard_contract.errors import GuardError, InvalidRequest, PortBusy, TextTooLong
from qwen3guard_contract.labels import QUERY_CATEGORY_ORDER
from qwen3guard_contract.verdict import TokenVerdict

from qwen3guard_apps.http_server.body import Bodies
from qwen3guard_apps.http_server.callers import Callers
from qwen3guard_apps.http_server.hosts import is_loopback, name_of
from qwen3guard_apps.http_server.limits import HttpLimits
from qwen3guard_apps.http_server.refusals import refusal, refused
from qwen3guard_apps.http_server.server import Listener, listen_error
from qwen3guard_apps.openai.api_error import ApiError
from qwen3guard_apps.playground.page_policy import page_policy

_HOST = "127.0.0.1"
MESSAGE_BYTES = 2**20
"""The largest request; the longest text that fits a context of 32,768 tokens takes half of it."""
PAGE_LIMITS = HttpLimits(max_body_bytes=MESSAGE_BYTES, max_receiving_bytes=16 * MESSAGE_BYTES, max_connections=256)
MOST_STREAMS = 64
"""A stream waits for its page as long as that is open, so these may take only a part of the connections."""
_PAGE = Path(__file__).parent / "page"
_CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_GUARD: web.AppKey[AsyncGuardClient] = web.AppKey("guard", AsyncGuardClient)
_STREAMS: web.AppKey[set[web.RequestHandler]] = web.AppKey("streams", set)
_BODIES: web.AppKey[Bodies] = web.AppKey("bodies", Bodies)
_CALLERS = Callers()
logging.getLogger("aiohttp.websocket").disabled = True  # it tells what a caller asks for

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def serve_until(
    stop: asyncio.Event,
    guard: AsyncGuardClient,
    port: int,
    ready: Callable[[str], None],
    limits: HttpLimits = PAGE_LIMITS,
) -> None:
    """Serves the page until `stop` is set, and calls `ready` once with its address. Raises PortBusy."""
    listener = Listener(application(guard), limits, ending_s=1)
    try:
        await listener.start(_HOST, port)
    except OSError as error:
        raise PortBusy(f"Port {port} on {_HOST} cannot be used: {listen_error(error)}.") from None
    try:
        ready(f"http://{_HOST}:{listener.addresses[0][1]}")
        await stop.wait()
    finally:
        await listener.stop()


def application(guard: AsyncGuardClient) -> web.Application:
    app = web.Application(middlewares=[_own_page_only])
    app[_GUARD] = guard
    app[_BODIES] = Bodies(PAGE_LIMITS)
    app[_STREAMS] = set()
    app.on_response_prepare.append(_restrict_page)
    for file in sorted(_PAGE.iterdir()):
        app.router.add_get("/" if file.name == "index.html" else f"/{file.name}", _content(file))
    app.router.add_get("/about", _about)
    app.router.add_get("/stream", _stream)
    app.router.add_post("/classify", _classify)
    return app


@web.middleware
async def _own_page_only(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        if "Origin" not in request.headers and (request.method != "GET" or request.path == "/stream"):
            raise refusal("own_page")
        _CALLERS.check(request)
        return await handler(request)
    except ApiError as error:
        return refused(error)


async def _restrict_page(request: web.Request, response: web.StreamResponse) -> None:
    """Sets headers: the page may load files of this server alone, talk to it alone, and stand in no frame."""
    host = request.headers.get("Host", "")
    own_socket = f" ws://{host}" if is_loopback(name_of(host) or "") else ""
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"connect-src 'self'{own_socket}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["Cache-Control"] = "no-store"


def _content(file: Path) -> _Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=file.read_bytes(), content_type=_CONTENT_TYPES[file.suffix], charset="utf-8")

    return handler


async def _about(request: web.Request) -> web.Response:
    names = [category.value for category in QUERY_CATEGORY_ORDER]
    return web.json_response({"guard": request.app[_GUARD].url, "categories": names})


async def _classify(request: web.Request) -> web.Response:
    """Answers {"prompt", "response" or null, "policy"} with Gen's verdict, as the client gives it, and the policy's
    decision `flag`, or with {"error", "code"}."""
    try:
        body = await request.app[_BODIES].receive(request)
        asked = _fields(body, prompt=str, response=str | None, policy=dict | None)
        policy = page_policy(asked["policy"])
        found = await request.app[_GUARD].classify(asked["prompt"], asked["response"])
    except ApiError as error:
        if error.status != 413:
            raise
        return web.json_response(_failure(TextTooLong("The text is too long for one message.")))
    except GuardError as error:
        return web.json_response(_failure(error))
    flag = found.unsafe if policy is None else bool(policy.unsafe_categories(found))
    return web.json_response(found.as_dict() | {"flag": flag})


async def _stream(request: web.Request) -> web.WebSocketResponse:
    """Moderates one response: {"prompt", "policy"} opens it, {"text"} is a step, and {"text": null} ends it.

    Each message gets one answer, in order. After an error the socket is closed.
    """
    streams, connection = request.app[_STREAMS], request.protocol
    if len(streams) >= MOST_STREAMS:
        raise refusal("too_many_streams")
    streams.add(connection)
    try:
        socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES, heartbeat=30)
        try:
            await socket.prepare(request)
        except web.HTTPBadRequest:
            no_handshake = refusal("not_websocket")
            no_handshake.headers["Sec-WebSocket-Version"] = "13"
            raise no_handshake from None
        try:
            await _moderate(request.app[_GUARD], socket)
        except GuardError as error:
            await _send(socket, _failure(error))
        await socket.close()
        return socket
    finally:
        streams.discard(connection)


async def _moderate(guard: AsyncGuardClient, socket: web.WebSocketResponse) -> None:
    try:
        async with asyncio.timeout(PAGE_LIMITS.body_timeout_s):  # pings do not prolong it
            opening = await socket.receive()
    except TimeoutError:
        return
    if opening.type is not WSMsgType.TEXT:
        return
    asked = _fields(opening.data, prompt=str, policy=dict | None)
    async with guard.stream(asked["prompt"], policy=page_policy(asked["policy"])) as stream:
        await _send(socket, {"prompt": stream.prompt_verdict.as_dict(), "notice": stream.notice})
        known: Sequence[TokenVerdict] = ()
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                return
            text = _fields(message.data, text=str | None)["text"]
            known = await _step(stream, text, known, socket)
            if text is None:
                return


async def _step(
    stream: AsyncStream, text: str | None, known: Sequence[TokenVerdict], socket: web.WebSocketResponse
) -> Sequence[TokenVerdict]:
    """Takes one step, or finishes for None; sends the verdicts from the first not in `known` on, and returns all."""
    began = time.perf_counter()
    await (stream.finish() if text is None else stream.step(text))
    took = 1000 * (time.perf_counter() - began)
    verdicts = stream.verdicts
    kept = min(len(known), len(verdicts))
    kept = next((index for index in range(kept) if known[index] is not verdicts[index]), kept)
    tokens = [token.as_dict() | {"run": token.run} for token in verdicts[kept:]]
    await _send(socket, {"kept": kept, "tokens": tokens, "ms": round(took, 2)})
    return verdicts


async def _send(socket: web.WebSocketResponse, message: Mapping[str, Any]) -> None:
    """Sends `message`, unless the page has left."""
    if not socket.closed:
        try:
            await socket.send_json(message)
        except ConnectionResetError:
            await socket.close()


def _fields(text: str | bytes, /, **kinds: Any) -> dict[str, Any]:
    """The JSON object in `text`, which has exactly the fields `kinds`, of those types. Raises InvalidRequest."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    has_fields = isinstance(message, dict) and message.keys() == kinds.keys()
    if not has_fields or not all(isinstance(message[name], kind) for name, kind in kinds.items()):
        raise InvalidRequest(f"The message is not a JSON object of {', '.join(kinds)}.")
    return dict(message)


def _failure(error: GuardError) -> dict[str, str]:
    return {"error": str(error), "code": error.code}
