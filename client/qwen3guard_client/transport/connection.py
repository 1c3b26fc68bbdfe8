"""How a client reaches its server: the address, the channel, TLS and the token."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3guard_contract.errors import InvalidCredentials, InvalidRequest
from qwen3guard_contract.parameters import TOKEN_VARIABLE
from qwen3guard_contract.small_file import read_small_file

from qwen3guard_client.arguments import checked_text
from qwen3guard_client.transport.address import is_local, read_address
from qwen3guard_client.transport.secret_file import warn_if_shared

File = str | Path
TOKEN_HEADER = "guard-token"
"""The HTTP header that carries the token. In gRPC's metadata it has Triton's GRPC_PREFIX before it."""
GRPC_PREFIX = "triton-grpc-protocol-"
DEFAULT_URL = "127.0.0.1:8001"
TIMEOUT_S = 30.0
RETRY_S = 0.1
"""The first pause between two attempts to reach a server that has gone away."""
CLOSE_S = 1.0
"""How long the closing of a client waits for its requests on the wire."""
CHANNEL: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # A server that restarts is back in seconds, but by default gRPC's pause between two attempts grows to minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # in spite of its name, this is how long one attempt may take
    ("grpc.max_reconnect_backoff_ms", 500),
)
NO_PROXY = ("grpc.enable_http_proxy", 0)


@dataclass(frozen=True)
class Tls:
    """Asks the client to speak TLS. All files are PEM, and are read again for each connection.

    `ca` holds the certificates to trust (None: gRPC's own list of public ones). `cert` and `key` are the client's own,
    for a server that asks for them. `server_name` is the name that the server's certificate must have, if that is not
    the host of the url. Raises InvalidCredentials.
    """

    ca: File | None = None
    cert: File | None = None
    key: File | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        for file in (self.ca, self.cert, self.key):
            if file is not None and (not isinstance(file, File) or not str(file) or "\0" in str(file)):
                raise InvalidCredentials("A file of certificates or keys must be named by a string or a Path.")
        if self.server_name is not None and not (isinstance(self.server_name, str) and self.server_name):
            raise InvalidCredentials("The server_name must be a string that is not empty.")
        if (self.cert is None) != (self.key is None):
            raise InvalidCredentials("A client's certificate and its key belong together: give both, or neither.")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca:
            trust(context, self.ca)
        if self.cert and self.key:
            present(context, self.cert, self.key)


def trust(context: ssl.SSLContext, ca: File) -> None:
    """Loads the certificates to trust. Raises InvalidCredentials."""
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        raise InvalidCredentials(f"{ca} holds no certificate in PEM.") from None
    except OSError as error:
        raise InvalidCredentials(f"{ca} cannot be read: {error.strerror}.") from None


def present(context: ssl.SSLContext, cert: File, key: File) -> None:
    """Loads the certificate to present, and its key. Raises InvalidCredentials."""

    def locked() -> str:
        raise InvalidCredentials(f"{key} is encrypted; a key must be readable without a password.")

    trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cert)
    try:
        Path(key).read_bytes()
        warn_if_shared(Path(key))
        context.load_cert_chain(cert, key, locked)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidCredentials(f"{key} is not the key of the certificate {cert}.") from None
        raise InvalidCredentials(f"{key} holds no key in PEM for the certificate {cert}.") from None
    except OSError as error:
        raise InvalidCredentials(f"{key} cannot be read: {error.strerror}.") from None


def read_token(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token in `file`, or else in QWEN3GUARD_TOKEN, or None if there is neither. Raises InvalidCredentials."""
    if file is None:
        token = environment.get(TOKEN_VARIABLE)
        return token if token is None else checked_token(token, TOKEN_VARIABLE)
    try:
        token = checked_token(read_small_file(file).decode("ascii").strip(), str(file))
        warn_if_shared(file)
        return token
    except UnicodeDecodeError:
        raise InvalidCredentials(f"{file} holds no token.") from None
    except OSError as error:
        raise InvalidCredentials(f"{file} cannot be read: {error.strerror}.") from None


def checked_token(token: str, where: str) -> str:
    """Returns the token. Raises InvalidCredentials, whose sentence names `where` it was found."""
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]{16,}", token):
        raise InvalidCredentials(f"{where} holds no token: 16 or more printable ASCII characters without spaces.")
    return token


def check_arguments(url: str, tls: Tls | None, token: str | None) -> None:
    """Raises InvalidRequest or InvalidCredentials if `connect` cannot be called with these."""
    checked_text(url, "The url")
    if not url or "\0" in url:
        raise InvalidRequest("The url must be a host and a port.")
    if tls is not None and not isinstance(tls, Tls):
        raise InvalidRequest("The argument tls must be a Tls.")
    if token is not None:
        checked_token(token, "The argument token")
    tls_of(url, tls)


def tls_of(url: str, tls: Tls | None) -> Tls | None:
    """The TLS to speak with the server at `url`: `tls`, or what https:// in `url` asks for. Raises InvalidRequest."""
    asked = read_address(url).tls
    if tls is not None and asked is False:
        raise InvalidRequest("The url begins with http://, which is without TLS, and TLS is asked for: give https://.")
    return Tls() if tls is None and asked else tls


def connect(kind: Callable[..., Any], url: str, tls: Tls | None, token: str | None) -> Any:
    """Returns tritonclient's client of `kind`, sync or async. Raises InvalidRequest or InvalidCredentials."""
    check_arguments(url, tls, token)
    tls = tls_of(url, tls)
    channel = CHANNEL + ((NO_PROXY,) if is_local(url) else ())
    arguments: dict[str, Any] = {"channel_args": channel}
    if tls is not None:
        names = (("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()
        arguments = {
            "channel_args": channel + names,
            "ssl": True,
            "root_certificates": tls.ca,
            "certificate_chain": tls.cert,
            "private_key": tls.key,
        }
    try:
        connection = kind(read_address(url).target, **arguments)
    except OSError as error:
        raise InvalidCredentials(f"{error.filename} cannot be read: {error.strerror}.") from None
    if token is not None:

        def add_token(request: Any) -> None:
            request.headers[GRPC_PREFIX + TOKEN_HEADER] = token

        connection.register_plugin(add_token)
    return connection
