"""How a verb of the command line reaches its server: the options of a connection, and the client they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from qwen3guard_client.client import GuardClient
from qwen3guard_client.transport.connection import DEFAULT_URL, TIMEOUT_S, Tls, read_token


def add_client_arguments(add: argparse.ArgumentParser) -> None:
    add.add_argument("--url", default=DEFAULT_URL, metavar="HOST:PORT", help=f"default: {DEFAULT_URL}")
    add.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="seconds each call may take")
    add_access_arguments(add)


def add_access_arguments(add: argparse.ArgumentParser) -> None:
    add.add_argument("--json", action="store_true", help="one JSON object a line")
    add.add_argument("--tls", action="store_true", help="speak TLS; each of the next four implies it")
    add.add_argument("--tls-ca", type=Path, metavar="FILE", help="certificates to trust (PEM), not the public ones")
    add.add_argument("--tls-cert", type=Path, metavar="FILE", help="the client's own certificate")
    add.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    add.add_argument("--tls-server-name", metavar="NAME", help="the server's name, where it is not the host of --url")
    token(add)


def token(add: argparse.ArgumentParser) -> None:
    add.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token (default: $QWEN3GUARD_TOKEN)")


def client(arguments: argparse.Namespace) -> GuardClient:
    token = read_token(arguments.token_file)
    return GuardClient(arguments.url, timeout_s=arguments.timeout, tls=tls(arguments), token=token)


def tls(arguments: argparse.Namespace) -> Tls | None:
    files = arguments.tls_ca, arguments.tls_cert, arguments.tls_key, arguments.tls_server_name
    return Tls(*files) if arguments.tls or any(files) else None
