"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}} with a status."""

from __future__ import annotations

from typing import Any

from qwen3guard_contract.errors import GuardError, InputError, InvalidMessages

RETRY_AFTER_S = 1


class ApiError(Exception):
    """An error that the client is told in OpenAI's shape.

    `status` is the HTTP status, as long as nothing was sent yet. `code` and `kind` become the error's code and type,
    `retry` adds the header Retry-After, and `guard` is an extra field of the error.
    """

    def __init__(
        self, status: int, kind: str, code: str, message: str, *, retry: bool = False, guard: Any = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind
        self._guard = {} if guard is None else {"guard": guard}
        self.headers = {"Retry-After": str(RETRY_AFTER_S)} if retry else {}

    def body(self) -> dict[str, Any]:
        error = {"message": str(self), "type": self.kind, "param": None, "code": self.code}
        return {"error": error | self._guard}


def invalid(message: str, code: str = "invalid_request") -> ApiError:
    """An error for a request that is wrong."""
    return ApiError(400, "invalid_request_error", code, message)


def upstream_failed(message: str, code: str = "upstream_failed", status: int = 502) -> ApiError:
    """An error for an LLM that failed, or whose answer cannot be read."""
    return ApiError(status, "upstream_error", code, message)


def proxy_failed(error: Exception) -> ApiError:
    """An error for what is a fault of the proxy's own."""
    return ApiError(500, "proxy_error", "internal", f"The proxy failed ({type(error).__name__}).")


def of_guard(error: GuardError) -> ApiError:
    """400 where the guard refuses the conversation (InputError); 503 for every other error of the guard."""
    code = "guard_not_text" if isinstance(error, InvalidMessages) else f"guard_{error.code.lower()}"
    if isinstance(error, InputError):
        return invalid(f"The guard refuses the conversation: {error}", code)
    return ApiError(503, "guard_error", code, f"The guard cannot judge: {error}", retry=True)
