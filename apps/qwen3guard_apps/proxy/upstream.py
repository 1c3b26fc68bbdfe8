"""The LLM behind the proxy: what is sent on to it, and what of its answer is sent back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from qwen3guard_client.surrogates import without_lone_surrogates
from qwen3guard_contract.json_values import MOST_VALUES, has_too_many
from yarl import URL

from qwen3guard_apps.openai.api_error import ApiError, invalid, upstream_failed
from qwen3guard_apps.openai.choice import unreadable
from qwen3guard_apps.openai.shapes import is_id
from qwen3guard_apps.proxy.own_key import KEY_HEADER, OwnKey
from qwen3guard_apps.proxy.settings import Settings

CONNECT_S = 10.0
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
_ABOUT_THE_BODY = {"content-length", "content-type", "content-encoding", "content-md5", "digest"}
_FOR_A_PART = {"range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"}
_NOT_SENT_ON = _HOP_BY_HOP | _ABOUT_THE_BODY | _FOR_A_PART | {"host", "accept-encoding", "expect", "cookie", KEY_HEADER}
BAD_GATEWAY = 502
MOST_INTERIM = 16
_IDS_BACK = re.compile(
    r"(x-|x-ms-|x-ms-client-|apim-)?request-id|x-amzn-requestid|x-(correlation|trace|litellm-call|litellm-model)-id"
    r"|openai-(version|organization|project|model)"
)
"""The headers that the client gets where their value is an id. The names are whole ones: a reverse proxy obeys some of
others, such as X-Accel-Redirect, and words can be a name."""
_NUMBERS_BACK = re.compile(
    r"retry-after(-ms)?|x-should-retry|openai-processing-ms|(x-)?ratelimit-(limit|remaining|reset)(-(requests|tokens))?"
)
_NUMBER = re.compile(r"true|false|[0-9][0-9.dhms]{0,31}")
"""Also a time such as 6m0s."""
LONGEST_ERROR = 2**16
"""The most characters of an LLM's error that are judged and told."""
LARGEST_ERROR = 2**18
"""The most bytes of an LLM's error that are read. Of a larger one the status is told, and no words."""
MOST_COMMAS = 10 * MOST_VALUES
"""More are in no answer that can be judged, and to parse them keeps all others waiting: no thread helps there."""


class LlmError(ApiError):
    """The LLM's own error, in its own words, which the guard must clear first.

    `body` is its JSON, or its text. It gets the status 502 where the LLM gave it none of its own.
    """

    def __init__(self, status: int, body: Any, headers: Mapping[str, str]) -> None:
        super().__init__(
            status, "upstream_error", "upstream_failed", "The LLM failed, and the guard withholds its words."
        )
        self.headers = dict(headers)
        fields = body if isinstance(body, dict) else {}
        error = fields.get("error")
        if isinstance(error, dict) and _is_said(error.get("message")):
            around = {} if status == BAD_GATEWAY else _without_guard(fields)
            self._body = around | {"error": _without_guard(error)}
        else:
            told = [error, fields.get("message"), fields.get("detail"), body]
            said = next((each for each in told if _is_said(each)), None) or _json_of(body)
            self._body = self._shaped(said or f"The LLM failed with status {status}, and says no more.")

    @property
    def words(self) -> str:
        """All that it says, to be judged."""
        return without_lone_surrogates(json.dumps(self._body, ensure_ascii=False))

    def withheld(self) -> ApiError:
        """The same error without its words."""
        return upstream_failed(str(self), status=self.status)

    def mark(self, guard: Any) -> None:
        """Its words were flagged, and are told nevertheless: `guard` goes with them."""
        self._guard = {"guard": guard}

    def body(self) -> dict[str, Any]:
        body = dict(json.loads(self.words))
        error = body.get("error")
        (error if isinstance(error, dict) else body).update(self._guard)
        return body

    def _shaped(self, text: str) -> dict[str, Any]:
        return {"error": {"message": text[:LONGEST_ERROR], "type": self.kind, "param": None, "code": self.code}}


def _is_said(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _without_guard(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without the field that is the guard's own."""
    return {name: value for name, value in fields.items() if name != "guard"}


def _json_of(body: Any) -> str:
    """Empty if no text is in it, or if it is nested too deeply to be told."""
    with contextlib.suppress(RecursionError):
        return json.dumps(body, ensure_ascii=False) if _has_text(body) else ""
    return ""


def _has_text(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return _is_said(value) or any(map(_has_text, inner))


class _Response(aiohttp.ClientResponse):
    """An answer before which no more than MOST_INTERIM interim ones are read (100 Continue and the like)."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        protocol, seen = connection.protocol, itertools.count()
        read = protocol.read

        async def bounded() -> Any:
            if next(seen) > MOST_INTERIM:
                raise aiohttp.ServerDisconnectedError("too many interim answers")
            return await read()

        protocol.read = bounded
        try:
            return await super().start(connection)
        finally:
            del protocol.read


class _Connector(aiohttp.TCPConnector):
    """Leaves a kept connection on which the LLM has said more than was asked for: the next caller would get that as its
    answer, and each one after it the answer of the one before."""

    async def connect(self, *arguments: Any, **named: Any) -> aiohttp.connector.Connection:
        while True:
            connection = await super().connect(*arguments, **named)
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()


class Upstream:
    """One connection pool. The caller's headers go along, Authorization too; nothing is kept or logged."""

    def __init__(self, settings: Settings) -> None:
        assert settings.upstream
        self._base = settings.upstream.rstrip("/")
        self._limit = settings.max_response_bytes
        self._own_key = OwnKey(settings.api_key)
        self._head_s = settings.upstream_timeout_s
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_S, connect=CONNECT_S, sock_read=settings.upstream_timeout_s
        )
        self._http = aiohttp.ClientSession(
            timeout=timeout,
            connector=_Connector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            response_class=_Response,
            skip_auto_headers=("User-Agent",),
        )

    async def close(self) -> None:
        await self._http.close()

    @asynccontextmanager
    async def call(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Leaving it before the end closes the connection, so that the LLM stops. Raises ApiError."""
        sent = {
            name: value
            for name, value in headers.items()
            if name.lower() not in _NOT_SENT_ON and not self._own_key.is_told_by(value)
        }
        sent |= {"Accept-Encoding": "identity"}
        data = None
        if body is not None:
            sent["Content-Type"] = "application/json"
            try:
                data = json.dumps(body, allow_nan=False).encode()
            except RecursionError:
                raise invalid("The request is nested too deeply.") from None
        url = URL(f"{self._base}/{path}" + (f"?{query}" if query else ""), encoded=True)
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self._head_s):  # however often something comes before the head
                    asked = self._http.request(method, url, headers=sent, data=data, allow_redirects=False)
                    answer = await stack.enter_async_context(asked)
                yield answer
        except TimeoutError:
            raise upstream_failed("The LLM did not answer in time.", "upstream_timeout", 504) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise upstream_failed(f"The LLM cannot be reached, or broke off ({type(error).__name__}).") from None

    async def whole(self, answer: aiohttp.ClientResponse) -> bytes:
        return b"".join([piece async for piece in self.pieces(answer)])

    async def accepted(self, answer: aiohttp.ClientResponse) -> None:
        """Raises LlmError for an error of the LLM's, and ApiError for a redirect: the client must not follow it."""
        if 200 <= answer.status < 300:
            return
        if not 400 <= answer.status < 600:
            redirects = "; it redirects, so give --upstream its final address" if 300 <= answer.status < 400 else ""
            raise upstream_failed(f"The LLM answers with status {answer.status}{redirects}.", "upstream_status")
        data = await self.whole(answer)
        body: Any = data.decode(errors="replace") if len(data) <= LARGEST_ERROR else ""
        with contextlib.suppress(ValueError, RecursionError):  # what is no JSON is told as a text
            body = _json(body)
        raise LlmError(answer.status, body, headers_back(answer))

    async def pieces(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Raises ApiError for more bytes than an answer may have."""
        total = 0
        async for piece in answer.content.iter_any():
            total += len(piece)
            if total > self._limit:
                raise upstream_failed("The LLM's answer is too long.", "upstream_too_long")
            yield piece


def headers_back(answer: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers that may reach the client: ids, and the numbers of limits."""
    named = {name.lower(): value for name, value in answer.headers.items()}
    return {name: value for name, value in named.items() if _may_pass(name, value)}


def _may_pass(name: str, value: str) -> bool:
    is_number = _NUMBERS_BACK.fullmatch(name) and _NUMBER.fullmatch(value)
    return bool(is_number or (_IDS_BACK.fullmatch(name) and is_id(value)))


def parsed(text: str | bytes, *, with_logprobs: bool = False) -> Any:
    """JSON of an LLM. Raises ApiError, also for more than MOST_VALUES; log-probabilities that were asked for may be
    more."""
    too_many = upstream_failed(f"The LLM's answer has more than {MOST_VALUES:,} values.", "upstream_too_long")
    if (text.count(",") if isinstance(text, str) else text.count(b",")) > MOST_COMMAS:
        raise too_many
    try:
        body = _json(text)
    except (ValueError, RecursionError):
        raise unreadable() from None
    if isinstance(body, dict | list) and has_too_many(body, besides="logprobs" if with_logprobs else None):
        raise too_many
    return body


def _json(text: str | bytes) -> Any:
    """NaN, Infinity and numbers as large, which JSON does not have, are None."""
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None
