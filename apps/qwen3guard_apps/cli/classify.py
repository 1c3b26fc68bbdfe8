"""`qwen3guard classify`: Gen's verdict on the last turn of one conversation."""

from __future__ import annotations

import argparse
from pathlib import Path

from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.thresholds import Thresholds
from qwen3guard_contract.verdict import Classification

from qwen3guard_apps import client_options
from qwen3guard_apps.cli.conversation import add_conversation_arguments, add_response_argument, given_conversation
from qwen3guard_apps.cli.terminal import Terminal

UNSAFE_STATUS = 10
"""The exit status of --exit-code for an unsafe verdict."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    client_options.add_client_arguments(parser, json="print the verdict as one line of JSON")
    add_conversation_arguments(parser)
    add_response_argument(parser)
    client_options.add_context_argument(parser)
    client_options.add_windows_argument(parser)
    parser.add_argument(
        "--exit-code",
        action="store_true",
        help=f"exit with {UNSAFE_STATUS} where the verdict is unsafe, by the server's own decision, or by --mode or"
        " --thresholds, and with 0 only where it is safe (default: 0 for every verdict)",
    )
    decision = parser.add_mutually_exclusive_group()
    decision.add_argument(
        "--mode", choices=("strict", "loose"), help="for --exit-code; strict: Controversial counts as unsafe"
    )
    decision.add_argument(
        "--thresholds",
        type=Path,
        metavar="FILE",
        help="for --exit-code: decide by the thresholds in this file, from evaluate --choose",
    )


def run(arguments: argparse.Namespace) -> None:
    """Exits with UNSAFE_STATUS where --exit-code asks for it. Raises a GuardError."""
    if (arguments.mode or arguments.thresholds) and not arguments.exit_code:
        raise InvalidRequest("--mode and --thresholds decide the exit status: give --exit-code too.")
    thresholds = Thresholds.read(arguments.thresholds) if arguments.thresholds else None
    conversation = given_conversation(arguments)
    with client_options.connected_client(arguments) as guard:
        found = guard.classify(
            conversation.prompt,
            conversation.response,
            messages=conversation.messages,
            context=arguments.context,
            windows=arguments.windows,
        )
    if arguments.json:
        print(found.as_json())
    else:
        Terminal().classification(found)
    if arguments.exit_code and is_unsafe(found, arguments.mode, thresholds):
        raise SystemExit(UNSAFE_STATUS)


def is_unsafe(found: Classification, mode: str | None, thresholds: Thresholds | None) -> bool:
    """The decision by `thresholds`, or else in `mode` (strict or loose), or else the server's own."""
    if thresholds is not None:
        return thresholds.is_unsafe(found)
    return {"strict": found.strict, "loose": found.loose, None: found.unsafe}[mode]
