"""The command-line options of a conversation: a prompt, or messages in OpenAI's form. Each is given as it is, in a
file (@FILE), or on standard input (-)."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qwen3guard_client.windows import LONGEST_TOKENS
from qwen3guard_contract.errors import InvalidEncoding, InvalidMessages, InvalidRequest, TextTooLong
from qwen3guard_contract.messages import BYTES_PER_TOKEN, CONTEXT, JSON_BYTES

FORMS = "@FILE reads it from a file, - from standard input"


@dataclass(frozen=True)
class GivenConversation:
    """What the options say: either `messages`, as JSON, or a `prompt`, perhaps with its `response`."""

    prompt: str | None
    response: str | None
    messages: str | None


def add_conversation_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --prompt and --messages, of which one must be given."""
    conversation = parser.add_mutually_exclusive_group(required=True)
    conversation.add_argument(
        "--prompt",
        metavar="T|@FILE|-",
        help=f"what the user writes; {FORMS}, both without the line ends at its end; @@ stands for a first @",
    )
    conversation.add_argument(
        "--messages",
        metavar="JSON|@FILE|-",
        help=f"the conversation as messages in OpenAI's form; {FORMS}",
    )


def add_response_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--response", metavar="T|@FILE|-", help="judge this response to the prompt; given in the forms of --prompt"
    )


def given_conversation(arguments: argparse.Namespace, *, stdin_is: str = "") -> GivenConversation:
    """Reads the options, their files and standard input. `stdin_is` says what else standard input is, if anything.

    Raises InvalidEncoding for what is not UTF-8, TextTooLong for what is longer than can be judged, InvalidMessages for
    a file of messages that cannot be read, and InvalidRequest for one of a text, for more than one value from standard
    input, and for a response beside messages.
    """
    values = {name: getattr(arguments, name, None) for name in ("prompt", "response", "messages")}
    from_stdin = [f"--{name}" for name, value in values.items() if value in ("-", "@-")]
    if from_stdin and stdin_is:
        raise InvalidRequest(f"Standard input is {stdin_is}: give {from_stdin[0]} as @FILE.")
    if len(from_stdin) > 1:
        raise InvalidRequest(f"Standard input can be only one of {' and '.join(from_stdin)}: give the other as @FILE.")
    if values["response"] is not None and values["messages"] is not None:
        raise InvalidRequest("Give either messages or a prompt with its response, not both.")
    longest = BYTES_PER_TOKEN * (LONGEST_TOKENS if getattr(arguments, "windows", False) else CONTEXT)
    return GivenConversation(
        _text(values["prompt"], "prompt", longest),
        _text(values["response"], "response", longest),
        _messages(values["messages"], JSON_BYTES * longest),
    )


def _text(value: str | None, name: str, longest: int) -> str | None:
    """A text as it is given, or from where it stands, then without the line ends at its end, as the shell's $(<FILE)
    gives it."""
    if value is None or not _stands_elsewhere(value):
        return value
    if value.startswith("@@"):
        return value[1:]
    return _read(value, name, longest, InvalidRequest).rstrip("\r\n")


def _messages(value: str | None, longest: int) -> str | None:
    if value is None:
        return None
    if _stands_elsewhere(value):
        return _read(value, "messages", longest, InvalidMessages)
    if not value.lstrip().startswith("["):
        raise InvalidMessages("--messages must be a JSON list; the name of a file is given as @FILE.")
    return value


def _stands_elsewhere(value: str) -> bool:
    return value == "-" or value.startswith("@")


def _read(value: str, name: str, longest: int, unreadable: type[InvalidRequest | InvalidMessages]) -> str:
    path = value.removeprefix("@")
    if not path:
        raise unreadable(f"The @ of --{name} has no file behind it, so it cannot be read.")
    where = "Standard input" if path == "-" else path
    try:
        with _standard_input() if path == "-" else Path(path).open("rb") as file:
            data = file.read(longest + 1)
    except OSError as error:
        hint = "; a text that begins with @ is given with @@" if path != "-" and name != "messages" else ""
        raise unreadable(f"{where}, of --{name}, cannot be read: {error.strerror or error}{hint}.") from None
    if len(data) > longest:
        raise TextTooLong(f"{where}, of --{name}, has more than {longest} bytes, the most that can be judged.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        kind = ", but UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise InvalidEncoding(f"{where}, of --{name}, is not valid UTF-8{kind}.") from None


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise OSError("it is closed")
    return sys.stdin.buffer
