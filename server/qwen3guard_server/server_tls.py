"""The embedded server's certificates. A TLS handshake in memory checks them before the server starts."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3guard_client.transport.connection import Tls, present, trust
from qwen3guard_contract.errors import InvalidCredentials


@dataclass(frozen=True)
class ServerTls:
    """The server's certificate and key, as PEM files.

    With `client_ca`, the server answers only clients whose certificate that CA signed. The supervisor then shows it
    `own_cert` with `own_key`. Raises InvalidCredentials if these are missing.
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
        """The flags of tritonserver for TLS."""
        flags = ["--grpc-use-ssl=true", f"--grpc-server-cert={self.cert}", f"--grpc-server-key={self.key}"]
        if self.client_ca:
            flags += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca}"]
        return flags

    def own_client(self) -> Tls:
        """The TLS settings with which a client on this machine reaches the server, whatever host its certificate names.

        Raises InvalidCredentials for anything that would keep the server, or every client, from speaking TLS.
        """
        names = [name for kind, name in self._handshake() if kind in ("DNS", "IP Address")]
        if not names:
            raise InvalidCredentials(f"{self.cert} names no host (subjectAltName), so no client could check it.")
        return Tls(self.cert, self.own_cert, self.own_key, names[0].replace("*", "canary"))

    def _handshake(self) -> tuple[tuple[str, str], ...]:
        """Does a TLS handshake in memory. Returns the names in the server's certificate, as (kind, name)."""
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        present(server, self.cert, self.key)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trust the certificate itself, without its CA
        trust(client, self.cert)
        if self.client_ca and self.own_cert and self.own_key:
            trust(server, self.client_ca)
            server.verify_mode = ssl.CERT_REQUIRED
            present(client, self.own_cert, self.own_key)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client_side = client.wrap_bio(to_client, to_server)
        server_side = server.wrap_bio(to_server, to_client, server_side=True)
        unfinished = {client_side: self.cert, server_side: self.own_cert}  # each with the certificate that it checks
        while unfinished:
            for side, checked in tuple(unfinished.items()):
                try:
                    side.do_handshake()
                    del unfinished[side]
                except ssl.SSLWantReadError:
                    continue
                except ssl.SSLCertVerificationError as error:
                    raise InvalidCredentials(f"{checked} would be refused: {error.verify_message}.") from None
                except ssl.SSLError as error:
                    raise InvalidCredentials(f"{self.cert} cannot be used for TLS: {error.reason}.") from None
        certificate: dict[str, Any] = client_side.getpeercert() or {}
        return tuple(certificate.get("subjectAltName", ()))
