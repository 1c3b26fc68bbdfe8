# ruff: noqa: RUF001
"""The texts that an export is proved on: a few of the project's own, in several languages, in the guard's template.

They are ordinary on purpose. A proof on random ids would not meet the tokens of a served guard, nor the outliers that
these tokens cause.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from qwen3guard_contract.errors import TokenizerMismatch
from tokenizers import Tokenizer

from qwen3guard_export.checkpoint.tokenizer_files import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from qwen3guard_export.proof.reference import Tokens

LONGEST_ROW = 448
"""The most tokens of a row; a longer one is cut."""

_TURNS = (
    "My neighbour's dog barks all night, and I have to get up at 5:30. What can I say to him without a quarrel?",
    "先和邻居好好谈一谈，告诉他几点睡觉，再问他晚上能不能把狗带进屋里。",
    "شكراً. وكيف أكتب له رسالة قصيرة ومهذبة؟",
    "Пожалуйста: «Добрый вечер! Ваша собака лает по ночам — 23:00–04:00. Можем ли мы это обсудить?»",
    "नहीं, बहुत औपचारिक है। ¿Puedes hacerlo más amable, con 2 o 3 frases? 😊",
    '```python\ndef greet(name: str) -> str:\n    return f"Hallo {name}, könnten wir kurz reden?"\n```\nSo etwa!',
)


def proof_rows(folder: Path, context: int) -> list[Tokens]:
    """The token ids of two conversations, one that ends with a user's turn and one with an assistant's.

    Each has at most `context` tokens. Raises TokenizerMismatch where the template or the tokenizer in `folder` fails.
    """
    rows = [_tokens(folder, _TURNS[first:last]) for first, last in ((0, 5), (2, 6))]
    return [row[: min(LONGEST_ROW, context)] for row in rows]


def around_text(folder: Path) -> tuple[Tokens, Tokens]:
    """The token ids that the template writes before and after the text of a single user's turn.

    Raises TokenizerMismatch as `proof_rows` does.
    """
    one, other = (_tokens(folder, [text]) for text in ("a", "1"))
    before = _shared(one, other)
    after = min(_shared(one[::-1], other[::-1]), len(one) - before)
    return one[:before], one[len(one) - after :]


def _shared(one: Tokens, other: Tokens) -> int:
    """The number of tokens that both begin with."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def _tokens(folder: Path, turns: Sequence[str]) -> Tokens:
    messages = [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]
    try:
        settings = json.loads((folder / TOKENIZER_CONFIG).read_text()) if (folder / TOKENIZER_CONFIG).is_file() else {}
        text = (
            ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
            .from_string(_template(folder, settings))
            .render(
                messages=messages, add_generation_prompt=True, enable_thinking=False, tools=None, **_special(settings)
            )
        )
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    except (jinja2.TemplateError, ValueError, TypeError, AttributeError, OSError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TokenizerMismatch(f"The chat template in {folder} cannot be rendered: {reason}.") from None
    except Exception as error:  # tokenizers raises plain Exceptions
        raise TokenizerMismatch(f"The tokenizer in {folder} cannot be read: {str(error)[:200]}.") from None
    if not ids:
        raise TokenizerMismatch(f"The chat template in {folder} renders a conversation to nothing.")
    return np.array(ids, np.int64)


def _template(folder: Path, settings: dict[str, Any]) -> str:
    if (folder / CHAT_TEMPLATE).is_file():
        return (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    stored = settings.get("chat_template")
    if isinstance(stored, list):
        stored = next((entry["template"] for entry in stored if entry.get("name") == "default"), "")
    return str(stored or "")


def _special(settings: dict[str, Any]) -> dict[str, str]:
    tokens = {name: settings.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return {name: value for name, value in tokens.items() if isinstance(value, str)}
