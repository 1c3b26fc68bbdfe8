"""Renders conversations to token ids with the checkpoint's chat template.

The template runs in a sandbox; nothing of it is implemented here. Text in a message cannot become a special token, end
its turn, or look like reasoning that a template would remove. Text that is too long for the context is refused before
anything else is done with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, UndefinedError
from qwen3guard_contract.errors import (
    InvalidMessages,
    LastRole,
    TextTooLong,
    TokenizerMismatch,
)
from qwen3guard_contract.messages import Message
from qwen3guard_contract.text import valid_text

from qwen3guard_runtime.text import sandbox
from qwen3guard_runtime.text.tokenizer import IM_END, GuardTokenizer

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The names under which transformers gives the tokenizer's special tokens to a template."""
TRIALS = (("user",), ("user", "assistant"), ("system", "user"), ("user", "assistant", "user"))
"""The roles of the conversations with which a template is tried when it is loaded."""
PLACEHOLDER = "a"
"""The text of messages whose tokens are not used."""


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
                self._write([{"role": role, "content": PLACEHOLDER} for role in roles])

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

    def render_next_turn(self, user: Message, limit: int) -> list[int]:
        """The token ids with which a conversation goes on after an answer that was judged while it was written: the end
        of that answer, the `user`'s message, and the beginning of the next answer. At most `limit` of them.

        The conversation then differs from one that is rendered as a whole, in which a template may write past answers
        in another form than the one that is written now. Raises what `render` raises, and TokenizerMismatch for a
        template that does not end an answer right after its text.
        """
        self.tokenizer.check_size(len(user.content.encode()), limit)
        before = Message("user", PLACEHOLDER), Message("assistant", PLACEHOLDER)
        ids = self.render([*before, user], limit)
        im_end = self.tokenizer.special[IM_END]
        ends = [index for index, each in enumerate(ids) if each == im_end]
        answer = self.tokenizer.encode(PLACEHOLDER)
        if len(ends) < 2 or ids[: ends[-2]][-len(answer) :] != answer:
            raise TokenizerMismatch("The chat template has no form in which a conversation goes on after an answer.")
        return ids[ends[-2] :]

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
