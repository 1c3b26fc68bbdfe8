"""The embedded server's certificates, tried out before it starts by a handshake in memory."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3guard_client.transport.connection import Tls, present, trust
from qwen3guard_contract.errors import InvalidCredentials


@dataclass(frozen=True)
class ServerTls:
    """The server's certificate and key. With `client_ca` it answers only clients whose certificate that one signed;
    `own_cert` and `own_key` are then what the supervisor shows it. All are PEM. Raises InvalidCredentials.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None
    own_cert: Path | None = None
    own_key: Path | None = None

    def __post_init__(self) -> None:
        if self.client_ca and not (self.own_cert and self.own_key):
            raise InvalidCredentials(
                "A server that asks for client certificates is watched with one too: "
                "give --tls-own-cert and --tls-own-key, signed like the clients'."
            )

    def flags(self) -> list[str]:
        """Of tritonserver."""
        found = ["--grpc-use-ssl=true", f"--grpc-server-cert={self.cert}", f"--grpc-server-key={self.key}"]
        if self.client_ca:
            found += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca}"]
        return found

    def own_client(self) -> Tls:
        """How a client on this machine reaches the server, whatever names its certificate has.

        Raises InvalidCredentials with what would keep the server, or every client, from speaking TLS.
        """
        names = [name for kind, name in self._rehearse() if kind in ("DNS", "IP Address")]
        if not names:
            raise InvalidCredentials(f"{self.cert} names no host (subjectAltName), so no client could check it.")
        return Tls(self.cert, self.own_cert, self.own_key, names[0].replace("*", "canary"))

    def _rehearse(self) -> tuple[tuple[str, str], ...]:
        """The names in the server's certificate."""
        served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        present(served, self.cert, self.key)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate vouches for itself
        trust(client, self.cert)
        if self.client_ca and self.own_cert and self.own_key:
            trust(served, self.client_ca)
            served.verify_mode = ssl.CERT_REQUIRED
            present(client, self.own_cert, self.own_key)
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        caller = client.wrap_bio(back, there)
        waiting = {caller: self.cert, served.wrap_bio(there, back, server_side=True): self.own_cert}
        while waiting:
            for side, shown in tuple(waiting.items()):
                try:
                    side.do_handshake()
                    del waiting[side]
                except ssl.SSLWantReadError:
                    continue
                except ssl.SSLCertVerificationError as error:
                    raise InvalidCredentials(f"{shown} would be refused: {error.verify_message}.") from None
                except ssl.SSLError as error:
                    raise InvalidCredentials(f"{self.cert} cannot be used for TLS: {error.reason}.") from None
        certificate: dict[str, Any] = caller.getpeercert() or {}
        return tuple(certificate.get("subjectAltName", ()))
