"""The proxy's own key: who asks must send it, and no LLM gets it."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from qwen3guard_apps.openai.api_error import ApiError

KEY_HEADER = "x-guard-key"
"""For callers whose Authorization is for the LLM."""
_BEARER = "bearer "


class OwnKey:
    """`key` is None where the proxy asks for none."""

    def __init__(self, key: str | None) -> None:
        self._key = None if key is None else key.encode()

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError for a request without the key."""
        if self._key is not None and not any(self.is_in(name, value) for name, value in headers.items()):
            raise ApiError(
                401,
                "authentication_error",
                "invalid_api_key",
                f"This proxy asks for its key, as the Authorization, x-api-key or {KEY_HEADER}.",
            )

    def is_in(self, name: str, value: str) -> bool:
        """Whether this header has the key, compared in a time that does not tell how much of it is right."""
        name = name.lower()
        if self._key is None or name not in ("authorization", "x-api-key", KEY_HEADER):
            return False
        if name == "authorization" and value.lower().startswith(_BEARER):
            value = value[len(_BEARER) :].strip()
        return hmac.compare_digest(_bytes(value), self._key)

    def is_told_by(self, value: str) -> bool:
        """Whether a header's value has the key somewhere, as that of an `api-key` beside the right one may."""
        return self._key is not None and self._key in _bytes(value)


def _bytes(value: str) -> bytes:
    return value.encode(errors="surrogateescape")
