"""Rows to judge, from JSON lines, Parquet or a data set of the hub: each is an object, or the error of reading it.

A row that cannot be read counts too, so that numbers are those of the file. This module knows nothing of a server.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3guard_client.transport import calls
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract.errors import GuardError, InvalidEncoding, InvalidRequest, ServeError
from qwen3guard_contract.verdict import Classification

PARQUET_ROWS = 1024
"""How many rows of a Parquet file are read at once."""


@dataclass(frozen=True)
class DataRow:
    """One row. `number` counts from 1. Where the row cannot be read, `record` is None and `error` says why."""

    number: int
    record: dict[str, Any] | None
    error: GuardError | None = None


@dataclass(frozen=True)
class Rows:
    """`total` rows of the source `name`; each call of `read` gives them from the first on."""

    name: str
    total: int
    read: Callable[[], Iterator[DataRow]]


@dataclass(frozen=True)
class Fields:
    """The fields of a row that hold its conversation: messages, or else a prompt with or without a response.

    A field that is null counts as missing. With `prompts_only`, the prompt alone is read.
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
        if messages is not None and not self.prompts_only:
            return None, None, messages
        prompt = record.get(self.prompt)
        if prompt is None:
            raise InvalidRequest(f"The row has neither a field {self.prompt!r} nor a field {self.messages!r}.")
        return prompt, None if self.prompts_only else record.get(self.response), None

    def call(self, record: dict[str, Any]) -> Call[Classification]:
        """The call that asks Gen about `record`. Raises an InputError."""
        return calls.classify(*self.conversation(record))


def open_rows(source: str, split: str) -> Rows:
    """The rows of `source`: a file of JSON lines or Parquet, or a folder or a hub id that `datasets` can load.

    `split` names the part of a data set. Raises InvalidRequest, or ServeError where a package is missing.
    """
    path = Path(source)
    if path.suffix == ".parquet" and path.is_file():
        return _parquet(path)
    if path.is_file():
        return _json_lines(path)
    if path.suffix in (".jsonl", ".json", ".parquet"):
        raise InvalidRequest(f"{source} is not a file.")
    return _dataset(source, split)


def _json_lines(path: Path) -> Rows:
    def read() -> Iterator[DataRow]:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield _parsed(number, line)

    with path.open("rb") as file:
        return Rows(str(path), sum(1 for _ in file), read)


def _parsed(number: int, line: bytes) -> DataRow:
    try:
        record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        return DataRow(number, None, InvalidEncoding("The line is not valid UTF-8."))
    except (ValueError, RecursionError):
        return DataRow(number, None, InvalidRequest("The line is not JSON."))
    if not isinstance(record, dict):
        return DataRow(number, None, InvalidRequest("The line is not a JSON object."))
    return DataRow(number, record)


def _parquet(path: Path) -> Rows:
    parquet = _module("pyarrow.parquet")
    try:
        total = parquet.ParquetFile(path).metadata.num_rows
    except Exception as error:
        raise InvalidRequest(f"{path} cannot be read as Parquet ({type(error).__name__}).") from None

    def read() -> Iterator[DataRow]:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield DataRow(number, record)

    return Rows(str(path), total, read)


def _dataset(source: str, split: str) -> Rows:
    try:
        dataset = _module("datasets").load_dataset(source, split=split)
    except ServeError:
        raise
    except Exception as error:
        raise InvalidRequest(
            f"{source} is neither a file nor a data set with a split {split!r} that loads ({type(error).__name__})."
        ) from None

    def read() -> Iterator[DataRow]:
        for number, record in enumerate(dataset, start=1):
            yield DataRow(number, dict(record))

    return Rows(f"{source}, {split}", len(dataset), read)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        missing = name.partition(".")[0]
        raise ServeError(f"{missing} is not installed: pip install 'qwen3guard-triton[data]'.") from None


def dumps(record: dict[str, Any]) -> str:
    """`record` as one line of JSON; a value of another kind (a date, bytes) is written as `str` gives it."""
    try:
        line = json.dumps(record, ensure_ascii=False, default=str)
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair can only be written as an escape
        return json.dumps(record, default=str)
    return line
