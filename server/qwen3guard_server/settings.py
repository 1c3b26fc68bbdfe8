"""The settings of the embedded server: where it listens and who may call it, and the flags of tritonserver for them."""

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
"""Triton's groups of calls that nobody may make. Who may load a model, for example, can run any code here."""
IMPOSSIBLE_HEADER = "no:body"
"""Triton demands this header for a closed call, and no client can send it: HTTP/1 ends a header's name at the colon,
and gRPC refuses the name. So closed calls stay closed to users of this machine, who can read tritonserver's command
line."""
KEEP_NO_REQUESTS = "--grpc-infer-allocation-pool-size=0"
"""Triton's flag. By default it keeps eight requests for reuse, each with the memory of the largest that it ever held,
also of callers whom it has refused."""
WHOLE_CONFIGURATIONS = "--disable-auto-complete-config"
"""Triton's flag. By default it starts the process of each model twice, first to ask for what its config.pbtxt lacks,
and ours lack nothing: the start of the demo takes four times as long."""
OPEN_TO_TOKEN = ("inference", "metadata", "model-config", "statistics")
"""All other groups except health, which stays open for probes."""


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens, who may call it, and how long it may take to load: `load_s` seconds in all,
    and `idle_load_s` of them without any work.

    HTTP and metrics are off with port 0. They always listen on loopback, whatever `address` says, because Triton has no
    TLS for them. An `address` other than loopback needs `tls` and `allow_remote`. With a `token`, every call except
    those for health must carry it. Raises ServeError or InvalidCredentials.
    """

    model_repository: Path
    grpc_port: int = 8001
    http_port: int = 0
    metrics_port: int = 0
    address: str = LOOPBACK
    load_s: float = 600.0
    idle_load_s: float = 30.0
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
        """The addresses and ports that must be free."""
        local = [(LOOPBACK, port) for port in (self.http_port, self.metrics_port) if port]
        return [(self.address, self.grpc_port), *local]

    def flags(self) -> list[str]:
        """The flags of tritonserver for these settings."""
        flags = [
            f"--grpc-address={self.host()}",
            f"--grpc-port={self.grpc_port}",
            KEEP_NO_REQUESTS,
            "--allow-vertex-ai=false",  # a variable may turn it on, and in 24.10 HTTP's restrictions do not apply to it
            *(self.tls.flags() if self.tls else ()),
        ]
        for name, port in (("http", self.http_port), ("metrics", self.metrics_port)):
            flags += [f"--{name}-address={LOOPBACK}", f"--{name}-port={port}"] if port else [f"--allow-{name}=false"]
        return flags + restrictions(self.token)

    def host(self) -> str:
        """The address as a URL has it: IPv6 in brackets."""
        return f"[{self.address}]" if ":" in self.address else self.address


def restrictions(token: str | None = None) -> list[str]:
    """The flags of tritonserver that close CLOSED_GROUPS to all, and OPEN_TO_TOKEN to clients that do not send
    `token`."""
    groups = [f"{','.join(CLOSED_GROUPS)}:{IMPOSSIBLE_HEADER}={secrets.token_urlsafe(32)}"]
    if token:
        groups.append(f"{','.join(OPEN_TO_TOKEN)}:{TOKEN_HEADER}={token}")
    return [f"--{flag}={group}" for group in groups for flag in ("grpc-restricted-protocol", "http-restricted-api")]
