"""The scope of a caller's conversations, within which the guard does not compute a beginning twice."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping


class Scopes:
    """One scope for each key that callers send to the LLM, as Authorization or in Anthropic's header. No key can be
    found out from its scope, which is another after a restart."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(32)

    def of(self, headers: Mapping[str, str]) -> str | None:
        """The scope of the caller with these headers. None without a key: such callers cannot be told apart."""
        key = headers.get("Authorization") or headers.get("x-api-key")
        return hmac.new(self._salt, key.encode(errors="surrogateescape"), hashlib.sha256).hexdigest() if key else None
