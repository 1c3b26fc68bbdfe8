"""The command-line options of a conversation: a prompt, or messages in OpenAI's form, given as JSON or in a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from qwen3guard_contract.errors import InvalidEncoding, InvalidMessages


def add_conversation_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --prompt and --messages, of which one must be given."""
    conversation = parser.add_mutually_exclusive_group(required=True)
    conversation.add_argument("--prompt", metavar="T", help="what the user writes")
    conversation.add_argument(
        "--messages",
        metavar="JSON|@FILE",
        help="the conversation as messages in OpenAI's form, or @ and a file of them",
    )


def messages(arguments: argparse.Namespace) -> str | None:
    """The JSON of --messages, which its file is read for, or None where it is not given. Raises an InputError."""
    value: str | None = arguments.messages
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidEncoding(f"{value[1:]} is not valid UTF-8.") from None
    except OSError as error:
        raise InvalidMessages(f"{value[1:]} cannot be read: {error.strerror}.") from None
