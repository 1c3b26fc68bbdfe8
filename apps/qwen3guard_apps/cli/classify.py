"""`qwen3guard classify`: Gen's verdict on the last turn of one conversation."""

from __future__ import annotations

import argparse

from qwen3guard_contract.errors import InvalidRequest

from qwen3guard_apps import client_options
from qwen3guard_apps.cli.conversation import add_conversation_arguments, messages
from qwen3guard_apps.cli.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    client_options.add_client_arguments(parser, json="print the verdict as one line of JSON")
    add_conversation_arguments(parser)
    parser.add_argument("--response", metavar="T", help="judge this response to the prompt")


def run(arguments: argparse.Namespace) -> None:
    """Raises a GuardError."""
    if arguments.response is not None and arguments.messages is not None:
        raise InvalidRequest("Give either messages or a prompt with its response, not both.")
    conversation = messages(arguments)
    with client_options.connected_client(arguments) as guard:
        classification = guard.classify(arguments.prompt, arguments.response, messages=conversation)
    if arguments.json:
        print(classification.as_json())
    else:
        Terminal().classification(classification)
