"""The scope of a caller's conversations, within which the guard does not compute a beginning twice."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping

_KEYS = ("Authorization", "x-api-key", "api-key")


class Scopes:
    """One scope for each key that callers send, as Authorization or in the header of Anthropic's or of Azure's, or for
    all of them together: one may be the proxy's own, which many callers have. No key can be found out from its scope,
    which is another after a restart."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(32)

    def of(self, headers: Mapping[str, str]) -> str | None:
        """The scope of the caller with these headers. None without a key: such callers cannot be told apart."""
        given = [headers.get(name) or "" for name in _KEYS]
        key = "\n".join(given) if any(given) else ""
        return hmac.new(self._salt, key.encode(errors="surrogateescape"), hashlib.sha256).hexdigest() if key else None
