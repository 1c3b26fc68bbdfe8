"""`qwen3guard playground`: one local page that shows a guard at work. Needs aiohttp (the extra `apps`)."""

from __future__ import annotations

import argparse
import asyncio
import json

from qwen3guard_client.aio import AsyncGuardClient
from qwen3guard_client.transport.connection import read_token
from qwen3guard_contract.errors import InvalidRequest, ServeError

from qwen3guard_apps import client_options

PLAYGROUND_PORT = 8008


def add_arguments(parser: argparse.ArgumentParser) -> None:
    client_options.add_client_arguments(parser)
    parser.add_argument(
        "--port",
        type=int,
        default=PLAYGROUND_PORT,
        metavar="N",
        help=f"of the page, on 127.0.0.1; 0 takes any (default: {PLAYGROUND_PORT})",
    )


def run(arguments: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C.

    Raises ServeError where aiohttp is missing, InvalidRequest for a number that is no port, PortBusy, or
    InvalidCredentials.
    """
    try:
        from qwen3guard_apps.playground import server
    except ImportError as missing:
        raise ServeError(f"{missing.name} is not installed: pip install 'qwen3guard-triton[apps]'.") from None
    if not 0 <= arguments.port < 65536:
        raise InvalidRequest(f"{arguments.port} is no port.")
    token = read_token(arguments.token_file)

    def show_url(url: str) -> None:
        print(json.dumps({"url": url}) if arguments.json else f"playground on {url}, Ctrl-C stops it", flush=True)

    async def serve_page() -> None:
        async with AsyncGuardClient(
            arguments.url, timeout_s=arguments.timeout, tls=client_options.tls(arguments), token=token
        ) as guard:
            await server.serve_until_cancelled(guard, arguments.port, show_url)

    asyncio.run(serve_page())
