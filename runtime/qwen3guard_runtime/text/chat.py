"""Reads conversations from JSON into checked messages, and renders them to token ids with the checkpoint's chat
template.

The template runs in a sandbox; nothing of it is implemented here. Text in a message cannot become a special token, end
its turn, or look like reasoning that a template would remove. Text that is too long for the context is refused before
anything else is done with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, UndefinedError
from qwen3guard_contract.errors import (
    EmptyText,
    InvalidEncoding,
    InvalidMessages,
    InvalidRequest,
    LastRole,
    TextTooLong,
    TokenizerMismatch,
    UnknownRole,
)

from qwen3guard_runtime.text import sandbox
from qwen3guard_runtime.text.tokenizer import BYTES_PER_TOKEN, GuardTokenizer

ROLES = ("system", "user", "assistant")
CONTEXT = 32_768
"""The number of tokens in the context of the published guards."""
JSON_BYTES = 6
"""The most bytes of JSON for one byte of text: an escape such as \\u0041."""
TEXT_TYPES = ("text", "input_text", "output_text")
"""The types of message parts that are text."""
SHOWN_CHARACTERS = 40
"""An error's sentence shows at most this many characters of a name that the caller chose."""


@dataclass(frozen=True)
class Message:
    role: str
    content: str


def valid_text(data: bytes | str, what: str) -> str:
    """Returns `data` as valid Unicode text. `what` names it in the error's sentence.

    Raises InvalidEncoding for bytes that are not UTF-8, and for lone surrogates.
    """
    try:
        if isinstance(data, bytes):
            return data.decode("utf-8")
        data.encode("utf-8")
        return data
    except UnicodeError:
        raise InvalidEncoding(f"{what} is not valid UTF-8.") from None


def parse_messages(data: bytes, limit: int = CONTEXT) -> list[Message]:
    """Reads messages in OpenAI's form: a JSON list of {"role", "content"}. A content is a string or a list of text
    parts.

    A field that is not read is refused, because a guard that ignores it would judge another conversation. So it raises
    InvalidMessages for another field of a message or of a part, unless its value is null or empty, and for a part that
    is not text. It also raises UnknownRole, EmptyText and InvalidEncoding, and TextTooLong, before parsing, if the JSON
    is longer than any text for a context of `limit` tokens.
    """
    longest = JSON_BYTES * BYTES_PER_TOKEN * limit
    if len(data) > longest:
        raise TextTooLong(f"The messages have {len(data)} bytes of JSON; a context of {limit} tokens takes {longest}.")
    try:
        raw = json.loads(valid_text(data, "The list of messages"), object_pairs_hook=_object)
    except (ValueError, RecursionError):  # a number of thousands of digits raises a plain ValueError
        raise InvalidMessages("The messages are not valid JSON.") from None
    if not isinstance(raw, list):
        raise InvalidMessages("The messages must be a JSON list.")
    if not raw:
        raise EmptyText("The list of messages is empty.")
    return [_message(number, item) for number, item in enumerate(raw, start=1)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Raises InvalidMessages if two fields have the same name: Python's parser would silently
    drop the first."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidMessages(f"The messages have an object with two fields {_shown(name)}.")
        fields[name] = value
    return fields


def _message(number: int, raw: Any) -> Message:
    if not isinstance(raw, dict) or not isinstance(raw.get("role"), str):
        raise InvalidMessages(f"Message {number} is not an object with a role.")
    if raw["role"] not in ROLES:
        raise UnknownRole(f"The role of message {number} is none of {', '.join(ROLES)}.")
    _check_fields(raw, {"role", "content"}, f"Message {number}")
    content = raw.get("content")
    if content is None:
        raise EmptyText(f"Message {number} has no text.")
    if isinstance(content, list):
        parts = enumerate(content, start=1)
        content = "".join(_part(part, f"Part {index} of message {number}") for index, part in parts)
    if not isinstance(content, str):
        raise InvalidMessages(f"The content of message {number} is not text.")
    return message(raw["role"], content, f"The content of message {number}")


def _part(raw: Any, where: str) -> str:
    """The text of one part of a message's content. Raises InvalidMessages."""
    if not isinstance(raw, dict):
        raise InvalidMessages(f"{where} is not an object of the type text.")
    kind, text = raw.get("type"), raw.get("text")
    if kind is not None and not isinstance(kind, str):
        raise InvalidMessages(f"{where} has a type that is not a string.")
    if kind is not None and kind not in TEXT_TYPES:
        raise InvalidMessages(f"{where} has the type {_shown(kind)}; the guard reads text alone.")
    _check_fields(raw, {"type", "text"}, where)
    if not isinstance(text, str):
        raise InvalidMessages(f"{where} has no string as its text.")
    return text


def _check_fields(raw: dict[str, Any], read: set[str], where: str) -> None:
    """Raises InvalidMessages for a field that is not in `read` and is not empty."""
    for name, value in raw.items():
        if name not in read and value is not None and value not in ("", [], {}):
            raise InvalidMessages(f"{where} has a field {_shown(name)}, which the guard does not read.")


def _shown(name: str) -> str:
    """A name that the caller chose, made fit for an error's sentence: short, on one line, without control
    characters."""
    shown = "".join(each if each.isprintable() else "?" for each in name[:SHOWN_CHARACTERS])
    return f"'{shown}...'" if len(name) > SHOWN_CHARACTERS else f"'{shown}'"


def message(role: str, content: bytes | str, what: str) -> Message:
    """Returns a checked message. Raises InvalidEncoding, or EmptyText if there is only white space. `what` names the
    content in the error's sentence."""
    text = valid_text(content, what)
    if not text.strip():
        raise EmptyText(f"{what} is empty.")
    return Message(role, text)


def conversation(
    messages: bytes | None, prompt: bytes | None, response: bytes | None, limit: int = CONTEXT
) -> list[Message]:
    """The conversation of a request, which has either messages, or a prompt with or without its response.

    Raises InvalidRequest for both, and what `parse_messages` raises.
    """
    if messages is not None:
        if prompt is not None or response is not None:
            raise InvalidRequest("Send either messages or a prompt, not both.")
        return parse_messages(messages, limit)
    if prompt is None:
        raise EmptyText("There is neither a prompt nor a list of messages.")
    turns = [message("user", prompt, "The prompt")]
    if response is not None:
        turns.append(message("assistant", response, "The response"))
    return turns


SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The names under which transformers gives the tokenizer's special tokens to a template."""
TRIALS = (("user",), ("user", "assistant"), ("system", "user"), ("user", "assistant", "user"))
"""The roles of the conversations with which a template is tried when it is loaded."""


class ChatTemplate:
    """Renders a conversation to token ids in the form that the checkpoint was trained with.

    `names` has the special tokens that the template may write, by names of SPECIAL_NAMES. Raises TokenizerMismatch for
    a template that cannot be parsed, or that uses a name that it is not given.
    """

    def __init__(self, tokenizer: GuardTokenizer, template: str, names: Mapping[str, str] | None = None) -> None:
        self.tokenizer = tokenizer
        self._names = dict(names or {})
        try:
            self._template = sandbox.run_sandboxed(lambda: sandbox.Sandbox().from_string(template))
        except TemplateError as error:
            raise TokenizerMismatch(f"The chat template cannot be parsed: {_one_line(error)}.") from None
        for roles in TRIALS:
            with suppress(InvalidMessages):  # the template may refuse conversations with these roles
                self._write([{"role": role, "content": "a"} for role in roles])

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate:
        """Loads chat_template.jinja, or else the template in tokenizer_config.json. Raises TokenizerMismatch."""
        tokenizer = GuardTokenizer.load(folder)
        try:
            config = _json_object(folder / "tokenizer_config.json")
            template = _stored_template(folder, config)
            names = _special_names(config, _json_object(folder / "special_tokens_map.json"))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
            raise TokenizerMismatch(f"The chat template in {folder} cannot be read.") from None
        if not isinstance(template, str):
            raise TokenizerMismatch(f"{folder} holds no chat template.")
        return cls(tokenizer, template, names)

    def render(self, messages: Sequence[Message], limit: int) -> list[int]:
        """Returns the token ids, at most `limit`. Raises LastRole, TextTooLong, InvalidMessages or TokenizerMismatch.

        The text between two special tokens is tokenized as a whole, the template's text together with the message's,
        because the last characters of a message can merge with those that the template writes after it.
        """
        if messages[-1].role == "system":
            raise LastRole("The last message is the system's; only a user's or an assistant's can be judged.")
        self.tokenizer.check_size(sum(len(each.content.encode()) for each in messages), limit)
        if len(messages) > limit:
            raise TextTooLong(f"There are {len(messages)} messages; a context of {limit} tokens has no room for them.")
        mark = self._unused_character(messages)
        shielded = [{"role": each.role, "content": self._shield(each.content, mark)} for each in messages]
        text = self._write(shielded)
        ids: list[int] = []
        for part in self.tokenizer.split_special(valid_text(text, "The rendered conversation")):
            if isinstance(part, int):
                ids.append(part)
            else:
                plain = part.replace(mark, "")
                self.tokenizer.check_length(plain, limit)
                ids += self.tokenizer.encode(plain)
            if len(ids) > limit:
                raise TextTooLong(f"The conversation has more than the {limit} tokens that the context has room for.")
        return ids

    def _write(self, messages: list[dict[str, str]]) -> str:
        """The text that the template writes for these messages. It is given the same names as by transformers.

        Raises InvalidMessages or TokenizerMismatch.
        """
        names = self._names | {"messages": messages, "tools": None, "documents": None}
        try:
            return sandbox.run_sandboxed(
                lambda: self._template.render(names, add_generation_prompt=True, enable_thinking=False)
            )
        except UndefinedError as error:
            raise TokenizerMismatch(f"The chat template uses what it is not given: {_one_line(error)}.") from None
        except TemplateError as error:
            raise InvalidMessages(f"The chat template refuses the conversation: {_one_line(error)}") from None

    def _shield(self, content: str, mark: str) -> str:
        """Puts `mark` inside each special token's text in `content`, so that it is not taken for the special token. The
        mark is removed before the text is encoded."""
        for name in self.tokenizer.special:
            content = content.replace(name, name[0] + mark + name[1:])
        return content

    @staticmethod
    def _unused_character(messages: Sequence[Message]) -> str:
        """A character that is in none of the messages: a private-use one if possible, or a later one. A text with all
        of these characters would be too long."""
        used = set().union(*(each.content for each in messages))
        return next(mark for mark in map(chr, range(0xE000, sys.maxunicode + 1)) if mark not in used)


def _json_object(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _stored_template(folder: Path, config: Mapping[str, Any]) -> object:
    """The template of the checkpoint. It is a string unless the checkpoint is malformed or has none."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _special_names(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that exist, by SPECIAL_NAMES. As in transformers, special_tokens_map.json counts only if the
    config lists no added tokens."""
    sources = config if "added_tokens_decoder" in config else {**config, **special_map}
    tokens = {name: sources.get(name) for name in SPECIAL_NAMES}
    contents = {name: each["content"] if isinstance(each, dict) else each for name, each in tokens.items()}
    return {name: str(content) for name, content in contents.items() if content}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
