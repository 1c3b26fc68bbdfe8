"""The command-line options of a connection to a guard's server, and the client that they describe."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import get_args

from qwen3guard_client.arguments import Context, checked_timeout
from qwen3guard_client.client import GuardClient
from qwen3guard_client.transport.address import URL_VARIABLE, read_address
from qwen3guard_client.transport.connection import DEFAULT_URL, TIMEOUT_S, Tls, read_token, tls_of

from qwen3guard_apps.argument_types import accepted, not_empty, positive


def add_client_arguments(parser: argparse.ArgumentParser, *, json: str) -> None:
    """Adds the options of `connected_client`: --url and --timeout, and those of `add_access_arguments`."""
    url = url_of_environment() or DEFAULT_URL
    parser.add_argument(
        "--url",
        type=accepted(read_address, default=url),
        default=url,
        metavar="HOST:PORT",
        help=f"the guard's server, for TLS with https:// before it; without it ${URL_VARIABLE} (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=accepted(checked_timeout, positive(float)),
        default=TIMEOUT_S,
        metavar="S",
        help="how many seconds a call may take (default: %(default)g)",
    )
    add_access_arguments(parser, json=json)


def add_context_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--context",
        choices=get_args(Context),
        default="whole",
        help="what of a conversation that is too long for the guard is judged: recent leaves out the oldest turns and"
        " says how many, whole is an error (default: %(default)s)",
    )


def add_windows_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--windows",
        action="store_true",
        help="judge a last turn that is too long for the guard in overlapping windows; the most severe one decides",
    )


def add_access_arguments(parser: argparse.ArgumentParser, *, json: str) -> None:
    """Adds --json, whose help is `json`, and the options for TLS and the token."""
    parser.add_argument("--json", action="store_true", help=json)
    parser.add_argument("--tls", action="store_true", help="use TLS; each of the next four options implies it")
    parser.add_argument(
        "--tls-ca", type=Path, metavar="FILE", help="trust these certificates (PEM) instead of the public ones"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="the client's own certificate (PEM)")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="the key of --tls-cert")
    parser.add_argument(
        "--tls-server-name",
        type=not_empty,
        metavar="NAME",
        help="the name in the server's certificate, if it is not the host of --url",
    )
    add_token_argument(parser)


def add_token_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="read the token from this file (default: $QWEN3GUARD_TOKEN)"
    )


def url_of_environment() -> str | None:
    """The address in the variable GUARD_URL, or None where it is not set, or empty."""
    return os.environ.get(URL_VARIABLE, "").strip() or None


def connected_client(arguments: argparse.Namespace) -> GuardClient:
    """The client for the options of `add_client_arguments`. Raises InvalidCredentials."""
    token = read_token(arguments.token_file)
    return GuardClient(arguments.url, timeout_s=arguments.timeout, tls=tls(arguments), token=token)


def tls(arguments: argparse.Namespace) -> Tls | None:
    """The TLS that the options ask for, --url among them, or None. Raises InvalidCredentials or InvalidRequest."""
    files = arguments.tls_ca, arguments.tls_cert, arguments.tls_key, arguments.tls_server_name
    asked = Tls(*files) if arguments.tls or any(files) else None
    return tls_of(arguments.url, asked) if arguments.url else asked
