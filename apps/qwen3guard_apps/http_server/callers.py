"""Who may ask: no web page of another site, under its own name or under one that was rebound to this machine."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import web

from qwen3guard_apps.http_server.hosts import is_loopback, name_of
from qwen3guard_apps.http_server.refusals import refusal
from qwen3guard_apps.openai.api_error import ApiError

_OWN_PAGE = {"same-origin", "none"}


class Callers:
    """`names` are further hosts that requests and pages may name. `any_host` lets any Host pass."""

    def __init__(self, names: Collection[str] = (), *, any_host: bool = False) -> None:
        self._names = {name_of(name) for name in names}
        self.any_host = any_host

    def check(self, request: web.BaseRequest) -> None:
        """Raises ApiError where the Host or the Origin is a stranger's, or what is sent is not called JSON."""
        host = _host_of(request).lower()  # none in HTTP/1.0, which no browser speaks
        if host and not (self.any_host or self._is_ours(name_of(host))):
            raise _foreign(
                "foreign_host", "The request's Host is none of this server's; its operator may allow others."
            )
        if not self._is_ours_or(host, request):
            raise _foreign("foreign_origin", "A web page of another site cannot use this server.")
        if request.method == "POST" and not _is_json(request.headers.get("Content-Type", "")):
            raise refusal("not_json")

    def _is_ours(self, name: str | None) -> bool:
        return name is not None and (name in self._names or is_loopback(name))

    def _is_ours_or(self, host: str, request: web.BaseRequest) -> bool:
        """Whether no web page asks, or one of this server's own."""
        is_from_here = _OWN_PAGE.issuperset(request.headers.getall("Sec-Fetch-Site", []))
        follows_a_link = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
        origins = request.headers.getall("Origin", [])
        if not origins:
            return is_from_here or follows_a_link
        try:
            parts = urlsplit(",".join(origins).lower())
        except ValueError:
            return False
        is_own = (parts.netloc == host and is_from_here) or name_of(parts.netloc) in self._names
        return parts.scheme in ("http", "https") and bool(host) and is_own


def _host_of(request: web.BaseRequest) -> str:
    """The Host, or the authority of a target that is a whole URL, which counts more (RFC 9112, 3.2.2)."""
    target = request.raw_path
    return request.headers.get("Host", "") if target.startswith("/") else urlsplit(target).netloc


def _is_json(content_type: str) -> bool:
    """aiohttp's own reading knows forms of mail that no browser counts as JSON."""
    return content_type.partition(";")[0].strip().lower() == "application/json"


def _foreign(code: str, sentence: str) -> ApiError:
    return ApiError(403, "invalid_request_error", code, sentence)
