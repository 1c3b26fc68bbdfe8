"""`qwen3guard stream`: moderates the response that arrives on standard input, piece by piece."""

from __future__ import annotations

import argparse
import codecs
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from qwen3guard_client.stream.stream import Stream
from qwen3guard_contract.errors import InvalidEncoding, InvalidRequest
from qwen3guard_contract.labels import Category
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.thresholds import Thresholds
from qwen3guard_contract.verdict import StepResult

from qwen3guard_apps import client_options
from qwen3guard_apps.argument_types import debounce
from qwen3guard_apps.cli.conversation import add_conversation_arguments, given_conversation
from qwen3guard_apps.cli.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    client_options.add_client_arguments(parser, json="print one JSON object a line, for the prompt and for each step")
    add_conversation_arguments(parser)
    client_options.add_context_argument(parser)
    policy = parser.add_argument_group(
        "policy",
        "If you give any of --mode, --thresholds, --debounce and --block, the rest are strict, 2 and all categories;"
        " else the server's own policy decides.",
    )
    decision = policy.add_mutually_exclusive_group()
    decision.add_argument("--mode", choices=("strict", "loose"), help="strict: Controversial counts as unsafe")
    decision.add_argument(
        "--thresholds", type=Path, metavar="FILE", help="decide by the thresholds in this file, from evaluate --choose"
    )
    policy.add_argument(
        "--debounce",
        type=debounce,
        metavar="N",
        help="flag at the last of so many unsafe tokens in a row",
    )
    policy.add_argument(
        "--block",
        action="append",
        choices=[category.value for category in Category],
        metavar="CATEGORY",
        help="count only the categories that are named so; may be given again",
    )


def run(arguments: argparse.Namespace) -> None:
    """Raises a GuardError."""
    if sys.stdin is None:
        raise InvalidRequest("Standard input, which is the response, is closed.")
    policy = _policy(arguments)
    conversation = given_conversation(arguments, stdin_is="the response")
    with (
        client_options.connected_client(arguments) as guard,
        guard.stream(
            conversation.prompt, messages=conversation.messages, policy=policy, context=arguments.context
        ) as stream,
    ):
        if arguments.json:
            prompt = {"prompt": stream.prompt_verdict.as_dict()}
            print(json.dumps(prompt | ({"notice": stream.notice} if stream.notice else {})), flush=True)
            for piece in _pieces(sys.stdin.fileno()):
                print(stream.step(piece).as_json(), flush=True)
            print(stream.finish().as_json(), flush=True)
        else:
            show_stream(stream, _pieces(sys.stdin.fileno()), Terminal())


def show_stream(stream: Stream, pieces: Iterator[str], terminal: Terminal) -> StepResult:
    """Streams `pieces` through the guard and shows each in the colour of its verdict."""
    terminal.prompt_verdict(stream.prompt_verdict)
    terminal.notice(stream.notice)
    terminal.line()
    print("  ", end="", file=terminal.out, flush=True)
    for piece in pieces:
        terminal.piece(piece, stream.step(piece).tokens)
    last = stream.finish()
    terminal.line()
    terminal.line()
    first = stream.verdicts[0].position if stream.verdicts else 0
    modes = {"strict": True, "loose": False, "session": None}
    terminal.flagged({name: stream.flagged(strict=mode) for name, mode in modes.items()}, first)
    return last


def _policy(arguments: argparse.Namespace) -> Policy | None:
    """The policy that the options ask for; None, the server's own policy, where no option asks for one."""
    options = {
        "strict": None if arguments.mode is None else arguments.mode == "strict",
        "debounce": arguments.debounce,
        "blocked": arguments.block and frozenset(map(Category, arguments.block)),
        "thresholds": arguments.thresholds and Thresholds.read(arguments.thresholds),
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    return Policy(**chosen) if chosen else None


def _pieces(descriptor: int) -> Iterator[str]:
    """Yields text as it arrives on `descriptor`, never cut inside a character, and without a byte order mark at
    its beginning. Raises InvalidEncoding."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    while data := os.read(descriptor, 4096):
        if piece := _decoded(decoder, data, final=False):
            yield piece
    _decoded(decoder, b"", final=True)


def _decoded(decoder: codecs.IncrementalDecoder, data: bytes, *, final: bool) -> str:
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError:
        raise InvalidEncoding("Standard input is not valid UTF-8.") from None
