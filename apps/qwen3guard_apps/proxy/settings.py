"""What an operator decides about the proxy, checked where it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from qwen3guard_client import Policy
from qwen3guard_client.arguments import Context
from qwen3guard_client.moderation.cascade import Confirm
from qwen3guard_client.moderation.gate import Release
from qwen3guard_contract.errors import InvalidParameter

from qwen3guard_apps.doors.all_doors import DOORS
from qwen3guard_apps.http_server.hosts import is_host_name
from qwen3guard_apps.http_server.limits import HttpLimits, require_finite, require_one
from qwen3guard_apps.openai.shapes import is_name

_ROUTE = re.compile(r"/v1(/[A-Za-z0-9_-]+)+")
_OWN_ROUTES = ("/v1/moderations", "/v1/models")

OnFlaggedAnswer = Literal["stop", "mark", "error"]
OnGuardError = Literal["block", "pass"]
PromptCheck = Literal["before", "while", "off"]


_FOR_AN_LLM = ("on_flag", "release", "prompt_check", "on_guard_error", "confirm", "pass_fields", "pass_routes")
"""Settings that decide about an LLM's answers alone."""


@dataclass(frozen=True)
class Settings(HttpLimits):
    """Times in seconds, sizes in bytes. `upstream` is the LLM's base URL, with its /v1; None serves moderations alone.
    With `confirm`, Gen must confirm each flag in that mode. `context` is that of the client's `stream`: whether the
    oldest turns may be left out. `pass_fields` are fields that the allow-list does not name, and that are judged and
    passed. `pass_routes` are routes of the LLM's that pass unjudged, such as /v1/embeddings. `allow_hosts` are names
    that requests may have as their Host, beside those of loopback. Callers must send `api_key`, if there is one.

    Raises InvalidParameter.
    """

    upstream: str | None = None
    policy: Policy = field(default_factory=Policy)
    on_flag: OnFlaggedAnswer = "stop"
    release: Release = "after_check"
    prompt_check: PromptCheck = "while"
    on_guard_error: OnGuardError = "block"
    confirm: Confirm | None = None
    context: Context = "whole"
    pass_fields: frozenset[str] = frozenset()
    pass_routes: frozenset[str] = frozenset()
    guard_timeout_s: float = 30.0
    upstream_timeout_s: float = 300.0
    max_response_bytes: int = 8 * 2**20
    max_in_flight: int = 64
    max_choices: int = 8
    allow_hosts: frozenset[str] = frozenset()
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        words: list[tuple[str, Any]] = [
            (self.on_flag, OnFlaggedAnswer),
            (self.release, Release),
            (self.prompt_check, PromptCheck),
            (self.on_guard_error, OnGuardError),
            (self.context, Context),
        ]
        if self.confirm is not None:
            words.append((self.confirm, Confirm))
        for value, known in words:
            if value not in get_args(known):
                raise InvalidParameter(f"{value!r} is not one of {', '.join(get_args(known))}.")
        if not all(map(is_name, self.pass_fields)):
            raise InvalidParameter("A field that is to pass must have a name without spaces.")
        for route in self.pass_routes:
            _check_route(route)
        if self.upstream is not None:
            _check_upstream(self.upstream)
        elif unused := [name for name in _FOR_AN_LLM if getattr(self, name) != getattr(type(self), name)]:
            options = ", ".join(f"--{name.replace('_', '-').removesuffix('s')}" for name in unused)
            raise InvalidParameter(f"Without an upstream there is no LLM for {options} to act on.")
        if not all(map(is_host_name, self.allow_hosts)):
            raise InvalidParameter("An allowed host must be a name or an address, without a port.")
        require_finite(self, "guard_timeout_s", "upstream_timeout_s")
        require_one(self, "max_response_bytes", "max_in_flight", "max_choices")


def _check_route(route: str) -> None:
    """Raises InvalidParameter."""
    if not _ROUTE.fullmatch(route):
        raise InvalidParameter("A route that is to pass must be a path such as /v1/embeddings.")
    if route in DOORS or route in _OWN_ROUTES:
        raise InvalidParameter(f"{route} is answered here, and cannot pass unjudged.")


def _check_upstream(url: str) -> None:
    """Raises InvalidParameter."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:  # UnicodeError among them
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise InvalidParameter("The upstream must be a base URL such as http://127.0.0.1:8080/v1.")
    if "@" in parts.netloc:
        raise InvalidParameter(
            "The upstream may have no user or password: each caller's Authorization goes to the LLM."
        )
