"""`qwen3guard serve`: the embedded Triton server, supervised until Ctrl-C. Needs the extra `serve`."""

from __future__ import annotations

import argparse
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3guard_client.client import GuardClient
from qwen3guard_client.transport.connection import read_token
from qwen3guard_contract.errors import InvalidCredentials, PortBusy
from qwen3guard_contract.log_output import LOG_FORMATS, LOG_VARIABLE, MOST_BYTES, line
from qwen3guard_server import canary, installation
from qwen3guard_server.server_tls import ServerTls
from qwen3guard_server.settings import ServerSettings

from qwen3guard_apps import client_options
from qwen3guard_apps.app_output import AppOutput, add_log_argument
from qwen3guard_apps.argument_types import not_empty, port
from qwen3guard_apps.config_file import add_config_argument

if TYPE_CHECKING:
    from qwen3guard_server.server import EmbeddedServer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=Path("model_repository"),
        metavar="DIR",
        help="the folder with the exported guards (default: %(default)s)",
    )
    parser.add_argument(
        "--grpc-port", type=port, default=8001, metavar="N", help="the port of gRPC (default: %(default)s)"
    )
    parser.add_argument(
        "--http-port",
        type=port,
        default=0,
        metavar="N",
        help="the port of HTTP, KServe's REST, on 127.0.0.1 (default: 0, which is no HTTP)",
    )
    parser.add_argument(
        "--metrics-port", type=port, default=0, metavar="N", help="the port of metrics (default: 0, which is none)"
    )
    parser.add_argument(
        "--address",
        type=not_empty,
        default="127.0.0.1",
        help="the address of gRPC; HTTP and metrics stay on 127.0.0.1 (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-remote", action="store_true", help="let --address name another interface; needs TLS too"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="the server's certificate (PEM); gRPC speaks TLS")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="the key of --tls-cert")
    parser.add_argument(
        "--tls-client-ca",
        type=Path,
        metavar="FILE",
        help="answer only clients whose certificate was signed by one of these",
    )
    parser.add_argument(
        "--tls-own-cert",
        type=Path,
        metavar="FILE",
        help="the supervisor's own certificate, signed by one of --tls-client-ca",
    )
    parser.add_argument("--tls-own-key", type=Path, metavar="FILE", help="the key of --tls-own-cert")
    client_options.add_token_argument(parser)
    parser.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        default="text",
        help="how the log is written; json has failed requests too (default: %(default)s)",
    )
    add_log_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serves until Ctrl-C or SIGTERM. Raises a ServeError, or InvalidCredentials."""
    try:  # these need Linux
        from qwen3guard_server.processes import stopping_on_signals
        from qwen3guard_server.server import EmbeddedServer
        from qwen3guard_server.supervisor import Supervisor
    except ImportError as missing:
        raise installation.not_installed(str(missing.name)) from None

    # An unsuitable installation is reported before a missing repository.
    installation.wheel()
    as_json = arguments.log_format == "json"
    if as_json:
        os.environ[LOG_VARIABLE] = "json"  # for the models' processes
    settings = _settings(arguments)
    with stopping_on_signals(), AppOutput(logging.WARNING, arguments.log_file, as_json=as_json) as output:

        def tell(level: str, text: str) -> None:
            output.tell(level, text, event="supervisor")

        if not (settings.is_loopback() or settings.token or arguments.tls_client_ca):
            tell(
                "warning",
                f"warning: whoever reaches {settings.address} may use the guard; "
                "--token-file or --tls-client-ca keeps it",
            )
        server = EmbeddedServer(settings, on_event=output.log)
        try:
            with (
                server,
                GuardClient(server.url, wait_for_server=False, tls=server.tls, token=settings.token) as client,
            ):
                tell("info", f"loading {', '.join(server.manifests)} from {settings.model_repository} ...")
                Supervisor(
                    server,
                    canary.canaries(client, server.manifests),
                    ready=lambda: _show_ready(server, output, tell, as_json=as_json),
                    say=tell,
                ).run(threading.Event())
        except KeyboardInterrupt:
            tell("info", "stopped")
        finally:
            if arguments.debug:
                for each in server.log[-MOST_BYTES // 2 :].splitlines():
                    output.log(each)


def _settings(arguments: argparse.Namespace) -> ServerSettings:
    """Raises ServeError, PortBusy or InvalidCredentials."""
    tls, own = None, (arguments.tls_own_cert, arguments.tls_own_key)
    if any(own) and not (all(own) and arguments.tls_client_ca):
        raise InvalidCredentials(
            "The supervisor's own certificate needs --tls-own-cert, --tls-own-key, --tls-client-ca."
        )
    if arguments.tls_cert and arguments.tls_key:
        tls = ServerTls(arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca, *own)
    elif arguments.tls_cert or arguments.tls_key or arguments.tls_client_ca:
        raise InvalidCredentials("A server that speaks TLS needs both --tls-cert and --tls-key.")
    _check_ports(arguments)
    return ServerSettings(
        arguments.model_repository,
        grpc_port=arguments.grpc_port,
        http_port=arguments.http_port,
        metrics_port=arguments.metrics_port,
        address=arguments.address,
        tls=tls,
        token=read_token(arguments.token_file),
        allow_remote=arguments.allow_remote,
    )


def _check_ports(arguments: argparse.Namespace) -> None:
    """Raises PortBusy where two services would have one port."""
    taken = dict[int, str]()
    for name in ("grpc-port", "http-port", "metrics-port"):
        number = getattr(arguments, name.replace("-", "_"))
        if number in taken:
            raise PortBusy(f"--{name} and --{taken[number]} are both {number}: give each its own.")
        taken |= {number: name} if number else {}


def _show_ready(server: EmbeddedServer, output: AppOutput, tell: Callable[[str, str], None], *, as_json: bool) -> None:
    for warning in server.warnings:
        tell("warning", f"warning: {warning}")
    for manifest in server.manifests.values():
        notice = f"; {manifest.notice}" if manifest.notice else ""
        tell("info", f"{manifest.variant}: {manifest.source}, {manifest.weights}{notice}")
    if as_json:
        output.log(line("info", "ready", url=server.url))
    output.print(f"ready on {server.url}")
