"""`qwen3guard perf`: rates and latencies of a running server under the load of perf_analyzer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from qwen3guard_client.transport.address import read_address
from qwen3guard_client.transport.connection import read_token

from qwen3guard_apps import client_options
from qwen3guard_apps.argument_types import positive

if TYPE_CHECKING:
    from qwen3guard_apps.cli.perf_analyzer import LoadFigures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    client_options.add_client_arguments(parser, json="print each measurement as one line of JSON")
    parser.add_argument(
        "--work", choices=("classify", "stream", "both"), default="both", help="what to load (default: %(default)s)"
    )
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency",
        type=positive(int),
        nargs="+",
        default=[1, 8],
        metavar="N",
        help="keep so many requests under way, one measurement for each number (default: 1 8)",
    )
    load.add_argument(
        "--rate",
        type=positive(float),
        nargs="+",
        metavar="R",
        help="send so many requests a second instead, at random moments",
    )
    parser.add_argument(
        "--seconds",
        type=positive(float),
        default=5.0,
        metavar="S",
        help="how long a measurement takes (default: %(default)g)",
    )
    parser.add_argument(
        "--tokens",
        type=positive(int),
        default=64,
        metavar="N",
        help="how many steps a stream has (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Raises PerfAnalyzerError, or a GuardError of the server."""
    from qwen3guard_apps.cli.perf_analyzer import CONVERSATIONS, Analyzer, Load

    loads = [Load(rate=rate) for rate in arguments.rate or ()] or [Load(count) for count in arguments.concurrency]
    url = read_address(arguments.url).target
    analyzer = Analyzer(tls=client_options.tls(arguments), token=read_token(arguments.token_file))
    for load in loads:
        if arguments.work != "stream":
            classified = analyzer.classify(url, load, arguments.seconds, CONVERSATIONS)
            _show_figures(classified, as_json=arguments.json)
        if arguments.work != "classify":
            streamed = analyzer.stream_step(url, load, arguments.seconds, arguments.tokens)
            _show_figures(streamed, as_json=arguments.json)


def _show_figures(figures: Iterable[LoadFigures], *, as_json: bool) -> None:
    for line in figures:
        print(json.dumps(asdict(line)) if as_json else line.as_line(), flush=True)
