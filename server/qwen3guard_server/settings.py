"""What the embedded server is told: where it listens, who may speak to it, and that as tritonserver's flags."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from qwen3guard_client.transport.connection import TOKEN_HEADER, checked_token
from qwen3guard_contract.errors import ServeError

from qwen3guard_server.server_tls import ServerTls

LOOPBACK = "127.0.0.1"
CLOSED_GROUPS = ("shared-memory", "model-repository", "trace", "logging")
"""Triton's groups of calls that nobody may make: whoever may load a model runs code here."""
NOBODY = "no:body"
"""What a closed call must carry, and no header can be called: HTTP/1 ends the name at the colon, gRPC refuses it. So it
does not matter that everybody on this machine can read tritonserver's command line."""
OPEN_TO_TOKEN = ("inference", "metadata", "model-config", "statistics")
"""The others but health, which stays open for probes."""


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens (port 0: not at all, but gRPC always does) and how long it may take to load.

    HTTP and metrics, for which Triton has no TLS, listen on loopback whatever `address` says. Another address than
    loopback needs `tls` and `allow_remote`. With a `token` every call but those for health must carry it. Raises
    ServeError, InvalidCredentials.
    """

    model_repository: Path
    grpc_port: int = 8001
    http_port: int = 0
    metrics_port: int = 0
    address: str = LOOPBACK
    load_s: float = 600.0
    tls: ServerTls | None = None
    token: str | None = field(default=None, repr=False)
    allow_remote: bool = False

    def __post_init__(self) -> None:
        if self.token is not None:
            checked_token(self.token, "The setting token")
        if self.is_loopback():
            return
        if not self.allow_remote:
            raise ServeError(
                "The embedded server is for this machine alone; production runs NVIDIA's container. "
                "--allow-remote listens elsewhere all the same."
            )
        if self.tls is None:
            raise ServeError(f"On {self.address} the server speaks TLS only: give --tls-cert and --tls-key.")

    def is_loopback(self) -> bool:
        try:
            return self.address == "localhost" or ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return False

    def listeners(self) -> list[tuple[str, int]]:
        """Addresses and ports."""
        local = [(LOOPBACK, port) for port in (self.http_port, self.metrics_port) if port]
        return [(self.address, self.grpc_port), *local]

    def flags(self) -> list[str]:
        """Of tritonserver."""
        found = [
            f"--grpc-address={self.host()}",
            f"--grpc-port={self.grpc_port}",
            "--allow-vertex-ai=false",  # in 24.10 it passes by the restrictions of HTTP, and a variable may turn it on
            *(self.tls.flags() if self.tls else ()),
        ]
        for name, port in (("http", self.http_port), ("metrics", self.metrics_port)):
            found += [f"--{name}-address={LOOPBACK}", f"--{name}-port={port}"] if port else [f"--allow-{name}=false"]
        return found + restrictions(self.token)

    def host(self) -> str:
        """The address as it stands in a url."""
        return f"[{self.address}]" if ":" in self.address else self.address


def restrictions(token: str | None = None) -> list[str]:
    """Tritonserver's flags that close CLOSED_GROUPS to all, and OPEN_TO_TOKEN to those who do not send `token`."""
    groups = [f"{','.join(CLOSED_GROUPS)}:{NOBODY}={secrets.token_urlsafe(32)}"]
    if token:
        groups.append(f"{','.join(OPEN_TO_TOKEN)}:{TOKEN_HEADER}={token}")
    return [f"--{flag}={group}" for group in groups for flag in ("grpc-restricted-protocol", "http-restricted-api")]
