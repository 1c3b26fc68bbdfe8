"""The LLM behind the proxy: what is sent on to it, and what of its answer is sent back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from qwen3guard_apps.openai.api_error import ApiError, upstream_failed
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
_NOT_SENT_ON = _HOP_BY_HOP | {"host", "content-length", "content-type", "accept-encoding", "expect", "cookie"}
_NOT_SENT_BACK = _HOP_BY_HOP | {"content-type", "content-length", "content-encoding", "set-cookie", "server", "date"}


@dataclass(frozen=True)
class WholeAnswer:
    """A whole answer."""

    status: int
    content_type: str
    headers: dict[str, str]
    body: bytes

    def response(self) -> web.Response:
        return web.Response(
            status=self.status, headers=self.headers | {"Content-Type": self.content_type}, body=self.body
        )


class Upstream:
    """One connection pool. The caller's headers go along, Authorization too; nothing is kept or logged."""

    def __init__(self, settings: Settings) -> None:
        assert settings.upstream
        self._base = settings.upstream.rstrip("/")
        self._limit = settings.max_response_bytes
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_S, connect=CONNECT_S, sock_read=settings.upstream_timeout_s
        )
        self._http = aiohttp.ClientSession(
            timeout=timeout,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent",),
        )

    async def close(self) -> None:
        await self._http.close()

    @asynccontextmanager
    async def call(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: Any = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Leaving it before the end closes the connection, so that the LLM stops. Raises ApiError."""
        sent = {name: value for name, value in headers.items() if name.lower() not in _NOT_SENT_ON}
        sent |= {"Accept-Encoding": "identity"}
        data = None
        if body is not None:
            sent["Content-Type"] = "application/json"
            data = json.dumps(body, allow_nan=False).encode()
        url = f"{self._base}/{path}" + (f"?{query}" if query else "")
        try:
            async with self._http.request(method, url, headers=sent, data=data, allow_redirects=False) as answer:
                yield answer
        except TimeoutError:
            raise upstream_failed("The LLM did not answer in time.", "upstream_timeout", 504) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise upstream_failed(f"The LLM cannot be reached, or broke off ({type(error).__name__}).") from None

    async def whole(self, answer: aiohttp.ClientResponse) -> WholeAnswer:
        body = b"".join([piece async for piece in self.pieces(answer)])
        content_type = answer.headers.get("Content-Type", "application/octet-stream")
        return WholeAnswer(answer.status, content_type, headers_back(answer), body)

    async def pieces(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Raises ApiError for more bytes than an answer may have."""
        total = 0
        async for piece in answer.content.iter_any():
            total += len(piece)
            if total > self._limit:
                raise upstream_failed("The LLM's answer is too long.", "upstream_too_long")
            yield piece


def headers_back(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_SENT_BACK}


def parsed(text: str | bytes) -> Any:
    """JSON of an LLM. Raises ApiError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise unreadable() from None


def unreadable() -> ApiError:
    return upstream_failed("The LLM's answer is not what OpenAI's API describes.", "upstream_unreadable")


def choices_of(body: Any, key: str, count: int) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
    """(index, choice, message or delta) of each choice. Raises ApiError where it is not so."""
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list):
        raise unreadable()
    entries = []
    for choice in choices:
        if not isinstance(choice, dict):
            raise unreadable()
        index, message = choice.get("index", 0), choice.get(key)
        if message is None:
            message = choice[key] = {}
        if not isinstance(message, dict) or not isinstance(index, int) or not 0 <= index < count:
            raise unreadable()
        entries.append((index, choice, message))
    return entries
