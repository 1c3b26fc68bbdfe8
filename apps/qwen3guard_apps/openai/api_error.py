"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}} with a status."""

from __future__ import annotations

from typing import Any

from qwen3guard_contract.errors import GuardError, InputError

RETRY_AFTER_S = 1


class ApiError(Exception):
    """`status` is what HTTP says where nothing was sent yet; `retry` asks the client to come back."""

    def __init__(
        self, status: int, kind: str, code: str, message: str, *, retry: bool = False, guard: Any = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self._kind = kind
        self._guard = {} if guard is None else {"guard": guard}
        self.headers = {"Retry-After": str(RETRY_AFTER_S)} if retry else {}

    def body(self) -> dict[str, Any]:
        error = {"message": str(self), "type": self._kind, "param": None, "code": self.code}
        return {"error": error | self._guard}


def invalid(message: str, code: str = "invalid_request") -> ApiError:
    """The request is wrong."""
    return ApiError(400, "invalid_request_error", code, message)


def upstream_failed(message: str, code: str = "upstream_failed", status: int = 502) -> ApiError:
    return ApiError(status, "upstream_error", code, message)


def of_guard(error: GuardError) -> ApiError:
    """What the guard cannot take is the client's affair; all else is a guard that cannot say."""
    code = f"guard_{error.code.lower()}"
    if isinstance(error, InputError):
        return invalid(f"The guard refuses the conversation: {error}", code)
    return ApiError(503, "guard_error", code, f"The guard cannot judge: {error}", retry=True)
