"""Translates the errors of Triton and gRPC to those of the contract."""

from __future__ import annotations

from qwen3guard_contract.errors import (
    DeadlineExceeded,
    GuardError,
    GuardNotServed,
    InternalError,
    InvalidRequest,
    Overloaded,
    SessionLost,
    TextTooLong,
    TlsFailed,
    TokenRefused,
    Unreachable,
    from_text,
)
from tritonclient.utils import InferenceServerException

from qwen3guard_client.transport.address import proxy_variable
from qwen3guard_client.transport.connection import TOKEN_HEADER

_OVERLOAD = "queue size"
_LATE = ("timeout expired", "timeout of the corresponding sequence")  # the request never left Triton's queue
_NOT_SERVED = ("unknown model", "is not ready")
_TOO_LARGE = "Payload Too Large"  # Envoy's words for a request above its limit


def error_of(error: InferenceServerException, *, token: str | None = None, url: str | None = None) -> GuardError:
    """The error of the contract that corresponds to Triton's or gRPC's.

    `token` is the one that the client sends, and `url` the address that it calls; both make the sentence more exact.
    """
    text = error.message() or ""
    status = (error.status() or "").rpartition(".")[2]
    failure = _access_error(text, token) or _server_error(text, status)
    variable = proxy_variable(url) if url and status == "UNAVAILABLE" else None
    if variable and isinstance(failure, Unreachable):
        return Unreachable(f"{str(failure).removesuffix('.')}; gRPC uses the proxy of the variable {variable}.")
    return failure


def _server_error(text: str, status: str) -> GuardError:
    sentence = text.partition("\n")[0]
    if ours := from_text(text):
        return ours
    if "must specify the START flag" in text:
        return SessionLost("The server does not know the session; open it again with START and everything so far.")
    if "non-zero or non-empty correlation ID" in text:
        return InvalidRequest("A step needs a session id.")
    if "Stub process" in text:
        return Unreachable("The server has lost the process of a model.")
    if any(words in text for words in _NOT_SERVED):
        return GuardNotServed(f"The server does not serve this guard: {sentence}.")
    if _OVERLOAD in text:
        return Overloaded("The server is overloaded; try again later.")
    if sentence == _TOO_LARGE:
        return TextTooLong("The request is longer than the proxy before the server takes.")
    if status == "DEADLINE_EXCEEDED" or any(words in text for words in _LATE):
        return DeadlineExceeded("The server did not answer in time.")
    if status in ("UNAVAILABLE", "CANCELLED"):  # a server that stops sends the latter
        return Unreachable(f"The server cannot be reached: {sentence}.")
    if status == "INVALID_ARGUMENT":
        return InvalidRequest(sentence)
    return InternalError(f"The server failed: {sentence}")


def _access_error(text: str, token: str | None) -> GuardError | None:
    if "is restricted, expecting header" in text:
        if TOKEN_HEADER not in text:
            return TokenRefused("The server keeps this call closed to everybody.")
        return TokenRefused("The server wants a token." if token is None else "The server does not accept this token.")
    if "Hostname Verification Check failed" in text or "is not in peer certificate" in text:
        return TlsFailed("The server's certificate does not name the host of the url.")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return TlsFailed("The server's certificate is not signed by a trusted one, or is not valid now.")
    if "andshake failed" in text:
        return TlsFailed("The server does not speak TLS as this client does.")
    if "Socket closed" in text and "failed to connect" in text:
        return Unreachable("The server closes the connection at once; it may want TLS, or another certificate.")
    return None


def deadline_exceeded() -> InferenceServerException:
    """The error that gRPC raises when its own deadline has passed."""
    return InferenceServerException("Deadline Exceeded", status="StatusCode.DEADLINE_EXCEEDED")


def cancelled() -> InferenceServerException:
    """The error of a request that ended because its client was closed."""
    return InferenceServerException("the client was closed", status="StatusCode.CANCELLED")


def client_closed() -> InvalidRequest:
    """The error of a request that begins after its client was closed."""
    return InvalidRequest("The client is closed.")
