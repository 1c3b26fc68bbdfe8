"""The texts that a verification judges: 334 of the project's own in 20 languages (texts.jsonl), and the user's rows."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from qwen3guard_contract.errors import GuardError

from qwen3guard_apps.annotation.rows import Fields, Rows
from qwen3guard_apps.evaluation.judge import split_response

BUNDLED = "bundled"
DATA = "data"

T = TypeVar("T")


@dataclass(frozen=True)
class SampleText:
    """One conversation to judge, from the set BUNDLED or DATA, in which it has a `number` from 1.

    It is either messages (`before`, as JSON in OpenAI's form) or a `prompt`, with the assistant's `response` to it or
    without.
    """

    set: str
    number: int
    language: str
    kind: str
    prompt: str | None = None
    before: str | None = None
    response: str | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All turns in OpenAI's form, as transformers' chat templates take them."""
        turns = json.loads(self.before) if self.before is not None else [{"role": "user", "content": self.prompt}]
        return [*turns, *([] if self.response is None else [{"role": "assistant", "content": self.response}])]


def bundled() -> list[SampleText]:
    lines = importlib.resources.files(__package__).joinpath("texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        SampleText(BUNDLED, number, row["language"], row["kind"], prompt=row["prompt"], response=row.get("response"))
        for number, row in enumerate(map(json.loads, lines), start=1)
    ]


def of_rows(rows: Rows, fields: Fields) -> tuple[list[SampleText], int]:
    """The conversations of the user's rows, and how many rows hold none that can be read."""
    found = []
    for row in rows.read():
        try:
            if row.error:
                raise row.error
            found.append(_text(row.number, row.record or {}, fields))
        except GuardError:
            continue
    return found, rows.total - len(found)


def _text(number: int, record: dict[str, Any], fields: Fields) -> SampleText:
    """Raises an InputError."""
    prompt, response, messages = fields.conversation(record)
    before = None
    if messages is not None:
        turns, response = split_response(messages)
        before = json.dumps(turns, ensure_ascii=False)
    kind = "a response" if response is not None else "a prompt"
    return SampleText(DATA, number, str(record.get("language") or ""), kind, _words(prompt), before, _words(response))


def _words(value: Any) -> str | None:
    return None if value is None else str(value)


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """At most `count` of the items, as far apart as possible; all of them with None."""
    if count is None or count >= len(items):
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]
