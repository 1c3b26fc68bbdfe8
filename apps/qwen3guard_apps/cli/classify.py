"""`qwen3guard classify`: Gen's verdict on the last turn of one conversation."""

from __future__ import annotations

import argparse
from pathlib import Path

from qwen3guard_contract.errors import InvalidEncoding, InvalidMessages, InvalidRequest

from qwen3guard_apps import client_options
from qwen3guard_apps.cli.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    client_options.add_client_arguments(parser)
    conversation = parser.add_mutually_exclusive_group(required=True)
    conversation.add_argument("--prompt", metavar="T")
    conversation.add_argument("--messages", metavar="JSON|@FILE", help="messages in OpenAI's form")
    parser.add_argument("--response", metavar="T", help="judge this response to the prompt")


def run(arguments: argparse.Namespace) -> None:
    """Raises a GuardError."""
    if arguments.response is not None and arguments.messages is not None:
        raise InvalidRequest("Give either messages or a prompt with its response, not both.")
    messages = None if arguments.messages is None else _text_or_file(arguments.messages)
    with client_options.connected_client(arguments) as guard:
        classification = guard.classify(arguments.prompt, arguments.response, messages=messages)
    if arguments.json:
        print(classification.as_json())
    else:
        Terminal().classification(classification)


def _text_or_file(value: str) -> str:
    """The text itself, or with a leading @ what the file of that name holds."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidEncoding(f"{value[1:]} is not valid UTF-8.") from None
    except OSError as error:
        raise InvalidMessages(f"{value[1:]} cannot be read: {error.strerror}.") from None
