"""`qwen3guard playground`: one local page that shows a guard at work. Needs aiohttp (the extra `apps`)."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging

from qwen3guard_client.aio import AsyncGuardClient
from qwen3guard_client.transport.connection import read_token
from qwen3guard_contract.errors import ServeError
from qwen3guard_contract.extras import how_to_install

from qwen3guard_apps import client_options
from qwen3guard_apps.app_output import AppOutput, add_log_argument
from qwen3guard_apps.argument_types import port
from qwen3guard_apps.http_server.open_files import within_open_files
from qwen3guard_apps.signals import stop_on_signals

PLAYGROUND_PORT = 8008


def add_arguments(parser: argparse.ArgumentParser) -> None:
    client_options.add_client_arguments(parser, json="print the address as one line of JSON")
    parser.add_argument(
        "--port",
        type=port,
        default=PLAYGROUND_PORT,
        metavar="N",
        help="the port of the page, on 127.0.0.1; 0 takes a free one (default: %(default)s)",
    )
    add_log_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C or SIGTERM.

    Raises ServeError where aiohttp is missing, PortBusy, or InvalidCredentials.
    """
    try:
        from qwen3guard_apps.playground import server
    except ImportError as missing:
        raise ServeError(f"{missing.name} is not installed: {how_to_install('apps')}.") from None
    token = read_token(arguments.token_file)

    async def serve_page(output: AppOutput) -> None:
        def show_url(url: str) -> None:
            output.print(json.dumps({"url": url}) if arguments.json else f"playground on {url}, Ctrl-C stops it")

        asyncio.get_running_loop().set_exception_handler(output.log_unhandled)
        stop = stop_on_signals()
        async with AsyncGuardClient(
            arguments.url, timeout_s=arguments.timeout, tls=client_options.tls(arguments), token=token
        ) as guard:
            await server.serve_until(stop, guard, arguments.port, show_url, limits)

    limits, notice = within_open_files(server.PAGE_LIMITS, server.MOST_STREAMS)
    with AppOutput(logging.WARNING, arguments.log_file, as_json=arguments.log_file is not None) as output:
        if notice:
            output.tell("warning", notice)
        asyncio.run(serve_page(output))
