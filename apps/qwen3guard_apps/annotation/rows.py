"""Rows to judge: each is an object, or the error of reading it, and some of its fields hold a conversation.

A row that cannot be read counts too, so that numbers are those of the file. This module knows nothing of files and of
a server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwen3guard_client.transport import calls
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract.errors import GuardError, InvalidRequest
from qwen3guard_contract.verdict import Classification

SHOWN_FIELDS = 20
"""An error's sentence names at most so many fields that there are."""


@dataclass(frozen=True)
class DataRow:
    """One row. `number` counts from 1. Where the row cannot be read, `record` is None and `error` says why."""

    number: int
    record: dict[str, Any] | None
    error: GuardError | None = None


@dataclass(frozen=True)
class Rows:
    """`total` rows of the source `name`; each call of `read` gives them from the first on.

    `columns` are the fields of every row, where the source says them before its rows. `schema` is that of Parquet
    (a pyarrow.Schema), where the source is Parquet.
    """

    name: str
    total: int
    read: Callable[[], Iterator[DataRow]]
    columns: tuple[str, ...] | None = None
    schema: Any = None

    def check_fields(self, wanted: Mapping[str, str]) -> None:
        """Sees that each field of `wanted` has a value in some row; an option that names it is the field's value there.

        Reads only as many rows as that takes. Raises InvalidRequest.
        """
        missing, seen = dict(wanted), dict[str, None]()
        for row in self.read() if wanted else ():
            record = row.record or {}
            seen |= dict.fromkeys(record)
            missing = {name: option for name, option in missing.items() if is_missing(record.get(name))}
            if not missing:
                return
        for name, option in missing.items():
            raise InvalidRequest(f"No row of {self.name} has the field {name!r} of {option}; {fields_shown(seen)}.")


def fields_shown(names: Mapping[str, Any]) -> str:
    """The part of a sentence that says which fields there are."""
    shown = [repr(name) for name in list(names)[:SHOWN_FIELDS]]
    more = " ..." if len(names) > SHOWN_FIELDS else ""
    return f"there are {', '.join(shown)}{more}" if shown else "no row has any field"


def is_missing(value: Any) -> bool:
    """Whether a field has no value: null, or NaN, which stands for it in tables."""
    return value is None or (isinstance(value, float) and math.isnan(value))


@dataclass(frozen=True)
class Fields:
    """The fields of a row that hold its conversation: messages, or else a prompt with or without a response.

    A field that is null counts as missing. Messages may be JSON in a text. With `prompts_only`, the prompt alone is
    read.
    """

    prompt: str = "prompt"
    response: str = "response"
    messages: str = "messages"
    prompts_only: bool = False

    def conversation(self, record: dict[str, Any]) -> tuple[Any, Any, Any]:
        """The prompt, the response and the messages of `record`, each None where it is missing.

        Raises InvalidRequest where there is neither a prompt nor messages.
        """
        messages = record.get(self.messages)
        if not is_missing(messages) and not self.prompts_only:
            return None, None, messages
        prompt, response = record.get(self.prompt), record.get(self.response)
        if is_missing(prompt):
            raise InvalidRequest(f"The row has neither a field {self.prompt!r} nor a field {self.messages!r}.")
        return prompt, None if self.prompts_only or is_missing(response) else response, None

    def call(self, record: dict[str, Any]) -> Call[Classification]:
        """The call that asks Gen about `record`. Raises an InputError."""
        return calls.classify(*self.conversation(record))

    def check(self, rows: Rows) -> None:
        """Sees that the rows have these fields: those that are not the default ones, and one that can be judged.

        Raises InvalidRequest.
        """
        named = {name: getattr(self, name) for name in ("prompt", "response", "messages")}
        usual = Fields()
        rows.check_fields({field: f"--{name}-field" for name, field in named.items() if field != getattr(usual, name)})
        seen = dict[str, None]()
        wanted = (self.prompt,) if self.prompts_only else (self.prompt, self.messages)
        for row in rows.read():
            record = row.record or {}
            seen |= dict.fromkeys(record)
            if not all(is_missing(record.get(name)) for name in wanted):
                return
        if seen:
            words = " or ".join(map(repr, wanted))
            raise InvalidRequest(
                f"No row of {rows.name} has the field {words}; {fields_shown(seen)}: name one by --prompt-field."
            )


def dumps(record: dict[str, Any]) -> str:
    """`record` as one line of JSON; a value that JSON does not have (a date, bytes, infinity) is written as its text,
    and NaN as null."""
    try:
        line = json.dumps(record, ensure_ascii=False, default=str, allow_nan=False)
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair can only be written as an escape
        return json.dumps(_finite(record), default=str)
    except ValueError:
        return dumps(_finite(record))
    return line


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
