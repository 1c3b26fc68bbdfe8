"""The proxy's HTTP side: its routes and its limits."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiohttp import web
from qwen3guard_client import AsyncGuardClient, GuardError
from qwen3guard_client.transport.connection import RETRY_S
from qwen3guard_contract import wire
from qwen3guard_contract.errors import PortBusy, Unreachable

from qwen3guard_apps.doors.all_doors import CHAT, DOORS
from qwen3guard_apps.doors.door import Door
from qwen3guard_apps.http_server.body import Bodies
from qwen3guard_apps.http_server.callers import Callers
from qwen3guard_apps.http_server.hosts import is_loopback
from qwen3guard_apps.http_server.server import Listener, listen_error
from qwen3guard_apps.openai import fields, guard_model, litellm_guardrail
from qwen3guard_apps.openai.api_error import ApiError, invalid, of_guard
from qwen3guard_apps.openai.batches import Batches
from qwen3guard_apps.openai.choice import unreadable
from qwen3guard_apps.openai.guard_model import GuardModel
from qwen3guard_apps.openai.litellm_guardrail import LiteLLMGuardrail
from qwen3guard_apps.openai.moderations import Moderations
from qwen3guard_apps.openai.readers import Apart, Readers
from qwen3guard_apps.openai.request import GuardedRequest
from qwen3guard_apps.openai.shapes import REMOVED
from qwen3guard_apps.proxy import openapi, sse, unjudged
from qwen3guard_apps.proxy.completion import ENDING_S, RECORD, Completion, Place
from qwen3guard_apps.proxy.metrics import CONTENT_TYPE, ProxyMetrics
from qwen3guard_apps.proxy.observed import Observed, RouteHandler
from qwen3guard_apps.proxy.own_key import OwnKey
from qwen3guard_apps.proxy.request_json import object_of
from qwen3guard_apps.proxy.settings import Settings
from qwen3guard_apps.proxy.streamed import StreamedCompletion
from qwen3guard_apps.proxy.upstream import LlmError, Upstream, parsed
from qwen3guard_apps.proxy.whole import WholeCompletion

if TYPE_CHECKING:
    from qwen3guard_apps.proxy.traces import Traces

_MODEL_NAME = re.compile(r"(?!\.{1,2}$)[\w.:@+ -]*", re.ASCII)


@dataclass(frozen=True)
class Listening:
    """`moderator` is the guard that answers moderations; `notice` is what the guard says of itself, or empty."""

    port: int
    moderator: str
    notice: str


JudgedHandler = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]
"""Answers a request with this body."""
AT_ONCE_BYTES = 2**15
"""Of a request."""


class Proxy:
    """What the routes do. Where nothing is upstream, `place` is None. Where Gen is not served, `chat` is None."""

    def __init__(
        self,
        settings: Settings,
        guard: AsyncGuardClient,
        place: Place | None,
        moderations: Moderations,
        litellm: LiteLLMGuardrail,
        *,
        chat: GuardModel | None,
        callers: Callers,
        traces: Traces | None = None,
    ) -> None:
        self._settings = settings
        self._bodies = Bodies(settings)
        self._guard = guard
        self._place = place
        self._moderations = moderations
        self._litellm = litellm
        self._chat = chat
        self._in_flight = 0
        self._readers = Readers(AT_ONCE_BYTES)
        self._readiness: asyncio.Task[bool] | None = None
        self._doors = DOORS if place else {f"/v1/{CHAT.path}": CHAT}
        llm = f"POST {', '.join(self._doors)}, GET /v1/models, " if place or chat else ""
        unless = " but what --pass-route names" if place else ""
        refusal = f"This proxy answers {llm}POST /v1/moderations and GET /health; it relays nothing unjudged{unless}."
        self._metrics = ProxyMetrics(self._doors)
        key = OwnKey(settings.api_key)
        self._observed = Observed(callers, key, self._metrics, traces, doors=self._doors, refusal=refusal)

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._observed.middleware])
        add = application.router.add_route
        add("POST", "/v1/moderations", self._received(self._moderate))
        add("POST", litellm_guardrail.PATH, self._received(self._answer_litellm))
        add("GET", "/health", self._health)
        if self._place:
            application.on_shutdown.append(self._stop)
        if self._place or self._chat:
            for path, door in self._doors.items():
                add("POST", path, self._received(partial(self._complete, door)))
            for path in self._settings.pass_routes:
                add("POST", path, self._received(partial(self._pass_on, path)))
            add("GET", "/v1/models", self._limited(self._models))
            add("GET", "/v1/models/{model:.+}", self._limited(self._models))
        for path, tell in (("/metrics", self._tell_metrics), ("/openapi.json", self._describe), ("/docs", self._page)):
            add("GET", path, tell)
        self._paths = [each.canonical for each in application.router.resources() if "{" not in each.canonical]
        return application

    async def _complete(self, door: Door, request: web.Request, body: bytes) -> web.StreamResponse:
        asked, read = await self._apart(body)(partial(self._read, door, body))
        if read is None:
            return await self._answer_as_model(asked)
        assert self._place
        kind = StreamedCompletion if asked.get("stream") else WholeCompletion
        completion: Completion = kind(self._place, request, read, door)
        try:
            return await completion.answer()
        finally:
            error = completion.error.code if completion.error else None
            request[RECORD] |= {
                "removed": completion.removed or None,
                "flagged_by": completion.flagged_by,
                "unguarded": completion.unguarded or None,
                "error": error,
            }

    def _read(self, door: Door, body: bytes) -> tuple[dict[str, Any], GuardedRequest | None]:
        """The request, and how the LLM is asked; None if it is the guard that is asked. Raises ApiError."""
        try:
            asked = object_of(body)
            if self._chat and door is CHAT and guard_model.is_guard(asked.get("model")):
                return asked, None
            if not self._place:
                raise guard_model.unknown()
            return asked, door.read(asked, self._settings.pass_fields)
        except RecursionError:
            raise invalid("The request is nested too deeply.") from None

    async def _answer_as_model(self, asked: dict[str, Any]) -> web.StreamResponse:
        assert self._chat
        try:
            answer = await self._chat.answer(asked, self._guard)
        except GuardError as error:
            raise of_guard(error) from None
        if isinstance(answer, dict):
            return web.json_response(answer)
        events = b"".join(map(sse.event, [*answer, sse.DONE]))
        return web.Response(body=events, content_type="text/event-stream")

    async def _pass_on(self, path: str, request: web.Request, body: bytes) -> web.StreamResponse:
        assert self._place
        request[RECORD]["unjudged"] = True
        asked = await self._object_of(body)
        return await unjudged.pass_on(self._place.upstream, path.removeprefix("/v1/"), request, asked)

    async def _moderate(self, request: web.Request, body: bytes) -> web.StreamResponse:
        try:
            answer = await self._moderations.answer(await self._object_of(body), self._apart(body))
        except GuardError as error:
            raise of_guard(error) from None
        if any(result["flagged"] for result in answer["results"]):
            request[RECORD]["flagged_by"] = "moderation"
        return web.json_response(answer)

    async def _answer_litellm(self, request: web.Request, body: bytes) -> web.StreamResponse:
        try:
            answer = await self._litellm.answer(await self._object_of(body), self._apart(body))
        except GuardError as error:
            raise of_guard(error) from None
        if answer["action"] != "NONE":
            request[RECORD]["flagged_by"] = "litellm"
        return web.json_response(answer)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        own = request.match_info.get("model")
        if self._chat and guard_model.is_guard(own):
            return web.json_response(guard_model.listed(str(own)))
        entries = [guard_model.listed()] if self._chat else []
        if not self._place:
            if own:
                raise guard_model.unknown()
            return web.json_response({"object": "list", "data": entries})
        names = ["models", *request.match_info.get("model", "").split("/")]
        if not all(_MODEL_NAME.fullmatch(name) for name in names):  # some lead to another route of the LLM's
            raise web.HTTPNotFound
        path = "/".join(quote(name, safe="") for name in names if name)
        query, upstream = request.rel_url.raw_query_string, self._place.upstream
        try:
            async with upstream.call("GET", path, query, request.headers) as answer:
                await upstream.accepted(answer)
                body = await upstream.whole(answer)
            listed = await self._place.readers.read(len(body), lambda: fields.MODEL_LIST.read(parsed(body)))
        except LlmError as error:
            raise error.withheld() from None
        if listed is REMOVED:
            raise unreadable()
        if not own and isinstance(listed.get("data"), list):
            listed["data"] += entries
        return web.json_response(listed)

    async def _stop(self, _: web.Application) -> None:
        assert self._place
        asyncio.get_running_loop().call_later(ENDING_S, self._place.stop)

    async def _health(self, _: web.Request) -> web.StreamResponse:
        """The guard is asked by one call at a time, however many ask here."""
        if self._readiness is None or self._readiness.done():
            model = wire.STREAM_STEP.name if self._place else self._moderations.served
            self._readiness = asyncio.create_task(self._guard.is_ready(model))
        ready = await asyncio.shield(self._readiness)
        return web.json_response({"guard": "ready" if ready else "not ready"}, status=200 if ready else 503)

    async def _tell_metrics(self, _: web.Request) -> web.StreamResponse:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _describe(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(openapi.description(self._paths, with_key=self._settings.api_key is not None))

    async def _page(self, _: web.Request) -> web.StreamResponse:
        headers = {"Content-Security-Policy": openapi.PAGE_POLICY}
        return web.Response(text=openapi.page(self._paths), content_type="text/html", headers=headers)

    def _received(self, handle: JudgedHandler) -> RouteHandler:
        """Receives the body first: who sends slowly takes no place of those that are answered."""

        async def handle_received(request: web.Request) -> web.StreamResponse:
            body = await self._bodies.receive(request)

            async def handle_body(request: web.Request) -> web.StreamResponse:
                return await handle(request, body)

            return await self._limited(handle_body)(request)

        return handle_received

    async def _object_of(self, body: bytes) -> dict[str, Any]:
        return await self._apart(body)(partial(object_of, body))

    def _apart(self, body: bytes) -> Apart:
        return partial(self._readers.read, len(body))

    def _limited(self, handle: RouteHandler) -> RouteHandler:
        async def handle_limited(request: web.Request) -> web.StreamResponse:
            if self._in_flight >= self._settings.max_in_flight:
                raise ApiError(429, "rate_limit_error", "too_many_requests", "Too many requests at once.", retry=True)
            self._in_flight += 1
            self._metrics.in_flight.set(self._in_flight)
            try:
                return await handle(request)
            finally:
                self._in_flight -= 1
                self._metrics.in_flight.set(self._in_flight)

        return handle_limited


@asynccontextmanager
async def listening(
    settings: Settings, guard: AsyncGuardClient, host: str, port: int, traces: Traces | None = None
) -> AsyncIterator[Listening]:
    """Answers until it is left. Raises GuardNotServed, or what else keeps the guard from judging, and PortBusy."""
    notice = await _first_judgement(guard, settings)
    gen = await guard.is_ready(wire.CLASSIFY.name)
    batches = Batches(settings.guard_timeout_s)
    moderations = Moderations(guard, settings.policy, batches, gen=gen)
    stream = await guard.is_ready(wire.STREAM_STEP.name)
    litellm = LiteLLMGuardrail(guard, settings.policy, batches, gen=gen, stream=stream or not gen)
    chat = GuardModel(settings.context) if gen else None
    async with AsyncExitStack() as stack:
        place = None
        if settings.upstream:
            place = Place(settings, guard, Upstream(settings))
            stack.push_async_callback(place.close)
        callers = Callers(settings.allow_hosts)
        proxy = Proxy(settings, guard, place, moderations, litellm, chat=chat, callers=callers, traces=traces)
        listener = Listener(proxy.application(), settings, ending_s=2 * ENDING_S)
        try:
            await listener.start(host, port)
        except OSError as error:
            raise PortBusy(f"The proxy cannot listen on {host}:{port}: {listen_error(error)}.") from None
        stack.push_async_callback(listener.stop)
        is_public = not all(is_loopback(address[0]) for address in listener.addresses)
        callers.any_host = is_public and not settings.allow_hosts
        yield Listening(listener.addresses[0][1], moderations.model, notice)


async def _first_judgement(guard: AsyncGuardClient, settings: Settings) -> str:
    """What the guard says of itself, once it judges; it is waited for as long as for any call."""
    deadline = time.monotonic() + settings.guard_timeout_s
    while True:
        try:
            if not settings.upstream and await guard.is_ready(wire.CLASSIFY.name):
                return (await guard.classify("Hello.")).notice
            if settings.upstream and settings.confirm:
                await guard.classify("Hello.")
            async with guard.stream("Hello.", policy=settings.policy) as stream:
                return stream.notice
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_S)
