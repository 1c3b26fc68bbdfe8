"""Looks once, when the proxy starts, whether the LLM's base URL leads to something like OpenAI's API.

The proxy starts in any case, for the LLM may come later; what looks wrong is told in a sentence.
"""

from __future__ import annotations

import json
import os
import ssl
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from qwen3guard_client.transport.address import is_local

CHECK_S = 3.0
"""How long the LLM may take to answer, in seconds."""
_MOST_BYTES = 2**20
"""How much of an answer is read."""
HTTP_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")


async def complaint(upstream: str, timeout_s: float = CHECK_S) -> str | None:
    """What is wrong with the base URL `upstream`, and what to do, in one sentence; None where nothing seems wrong.

    Asks for {upstream}/models, without a key: an LLM that wants one is there. Raises nothing.
    """
    base = _without_user(upstream).rstrip("/")
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as http,
            http.get(f"{base}/models", allow_redirects=False) as answer,
        ):
            wrong = await _complaint_about(answer, base)
            if wrong and answer.status in (200, 404, 405) and not base.endswith("/v1") and await _is_api(http, base):
                return f"{wrong}, but {base}/v1 does: give --upstream {base}/v1."
    except TimeoutError:
        wrong = f"{base} does not answer within {timeout_s:g} s"
    except aiohttp.InvalidURL:
        return f"{base} is not a URL: give one such as http://127.0.0.1:8080/v1."
    except (aiohttp.ClientError, OSError) as error:
        reason = f"{_reason(error)}{_behind_a_proxy(base)}"
        return f"{base} cannot be reached ({reason}): start the LLM, or correct --upstream."
    return wrong and f"{wrong}: see that --upstream is the base URL of the LLM, with its /v1."


async def _complaint_about(answer: aiohttp.ClientResponse, base: str) -> str | None:
    """What is wrong with an answer, without the advice."""
    if answer.status in (401, 403, 429):
        return None
    if 300 <= answer.status < 400:
        target = _without_user(answer.headers.get("Location", "elsewhere"))
        return f"{base} redirects to {target}, and the proxy follows no redirect"
    if answer.status >= 500:
        return f"{base} answers with HTTP {answer.status} and may still be starting"
    if answer.status >= 300:
        return f"{base}/models answers with HTTP {answer.status}, unlike OpenAI's API"
    return None if await _is_json_object(answer) else f"{base}/models answers, but not as OpenAI's API does"


async def _is_api(http: aiohttp.ClientSession, base: str) -> bool:
    """Whether the API is at {base}/v1."""
    try:
        async with http.get(f"{base}/v1/models", allow_redirects=False) as answer:
            return answer.status in (401, 403) or (answer.status == 200 and await _is_json_object(answer))
    except (aiohttp.ClientError, OSError):
        return False


async def _is_json_object(answer: aiohttp.ClientResponse) -> bool:
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > _MOST_BYTES:
            return False
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def _reason(error: Exception) -> str:
    cause = getattr(error, "os_error", None) or error
    if isinstance(error, aiohttp.ClientConnectorCertificateError) or isinstance(cause, ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its host has no address"
    if isinstance(cause, ssl.SSLError):
        return "it does not speak TLS"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientResponseError):
        return "it does not speak HTTP"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return type(error).__name__


def _behind_a_proxy(base: str) -> str:
    """Names the variable of a proxy that people may expect to be used."""
    if is_local(urlsplit(base).netloc):
        return ""
    variable = next(
        (name for name in HTTP_PROXY_VARIABLES if os.environ.get(name) or os.environ.get(name.upper())), None
    )
    return f"; the variable {variable} is not used for the LLM" if variable else ""


def _without_user(url: str) -> str:
    """A URL without what may be secret in it: a user, a password and a query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "elsewhere"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
