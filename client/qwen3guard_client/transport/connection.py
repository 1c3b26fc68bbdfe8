"""How a client reaches its server: the channel, TLS and the token."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3guard_contract.errors import InvalidCredentials

File = str | Path
TOKEN_HEADER = "guard-token"
"""The HTTP header that carries the token; in gRPC's metadata it has Triton's GRPC_PREFIX before it."""
GRPC_PREFIX = "triton-grpc-protocol-"
TOKEN_VARIABLE = "QWEN3GUARD_TOKEN"
DEFAULT_URL = "127.0.0.1:8001"
TIMEOUT_S = 30.0
RETRY_S = 0.1
"""Between two attempts to reach a server that has gone away."""
CLOSE_S = 1.0
"""How long closing a client waits for its requests on the wire."""
CHANNEL: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # A server that restarts is back in seconds; gRPC's own patience between two attempts grows to minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # how long one attempt may take, whatever its name says
    ("grpc.max_reconnect_backoff_ms", 500),
)


@dataclass(frozen=True)
class Tls:
    """Speak TLS. All files are PEM, and are read anew for each client.

    `ca` holds the certificates to trust (None: gRPC's own list of public ones). `cert` and `key` are the client's own,
    for a server that asks for one. `server_name` is what the server's certificate must name, where that is not the
    host of the url. Raises InvalidCredentials.
    """

    ca: File | None = None
    cert: File | None = None
    key: File | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InvalidCredentials("A client's certificate and its key belong together: give both, or neither.")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca:
            trust(context, self.ca)
        if self.cert and self.key:
            present(context, self.cert, self.key)


def trust(context: ssl.SSLContext, ca: File) -> None:
    """Raises InvalidCredentials."""
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        raise InvalidCredentials(f"{ca} holds no certificate in PEM.") from None
    except OSError as error:
        raise InvalidCredentials(f"{ca} cannot be read: {error.strerror}.") from None


def present(context: ssl.SSLContext, cert: File, key: File) -> None:
    """Raises InvalidCredentials."""

    def locked() -> str:
        raise InvalidCredentials(f"{key} is encrypted; a key must be readable without a password.")

    trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cert)
    try:
        Path(key).read_bytes()
        context.load_cert_chain(cert, key, locked)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidCredentials(f"{key} is not the key of the certificate {cert}.") from None
        raise InvalidCredentials(f"{key} holds no key in PEM for the certificate {cert}.") from None
    except OSError as error:
        raise InvalidCredentials(f"{key} cannot be read: {error.strerror}.") from None


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token in `file`, or else in QWEN3GUARD_TOKEN; None where there is neither. Raises InvalidCredentials."""
    if file is None:
        token = environment.get(TOKEN_VARIABLE)
        return token if token is None else checked_token(token, TOKEN_VARIABLE)
    try:
        return checked_token(file.read_text(encoding="ascii").strip(), str(file))
    except UnicodeDecodeError:
        raise InvalidCredentials(f"{file} holds no token.") from None
    except OSError as error:
        raise InvalidCredentials(f"{file} cannot be read: {error.strerror}.") from None


def checked_token(token: str, where: str) -> str:
    if not re.fullmatch(r"[!-~]{16,}", token):
        raise InvalidCredentials(f"{where} holds no token: 16 or more printable ASCII characters without spaces.")
    return token


def connect(kind: Callable[..., Any], url: str, tls: Tls | None, token: str | None) -> Any:
    """tritonclient's client of `kind`, sync or async. Raises InvalidCredentials."""
    if token is not None:
        checked_token(token, "The argument token")
    arguments: dict[str, Any] = {"channel_args": CHANNEL}
    if tls is not None:
        names = (("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()
        arguments = {
            "channel_args": CHANNEL + names,
            "ssl": True,
            "root_certificates": tls.ca,
            "certificate_chain": tls.cert,
            "private_key": tls.key,
        }
    connection = kind(url, **arguments)
    if token is not None:

        def add_token(request: Any) -> None:
            request.headers[GRPC_PREFIX + TOKEN_HEADER] = token

        connection.register_plugin(add_token)
    return connection
