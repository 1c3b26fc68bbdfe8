"""Opens what rows are read from: a file, standard input, or a data set of the hub."""

from __future__ import annotations

import atexit
import gzip
import importlib
import json
import logging
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from qwen3guard_contract.errors import InvalidRequest, ServeError
from qwen3guard_contract.extras import how_to_install

from qwen3guard_apps.annotation.csv_rows import delimited
from qwen3guard_apps.annotation.json_rows import Open, rows_of_array, rows_of_lines
from qwen3guard_apps.annotation.rows import DataRow, Rows

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")
SPLIT = "train"
STANDARD_INPUT = "-"
PARQUET_ROWS = 1024
"""How many rows of a Parquet file are read at once."""
HEAD_BYTES = 2**16
"""How much of a source tells its format."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SUFFIXES = {f".{each}": each for each in FORMATS} | {".ndjson": "jsonl", ".jsonlines": "jsonl", ".pq": "parquet"}


def open_rows(source: str, split: str = SPLIT, form: str | None = None, config: str | None = None) -> Rows:
    """The rows of `source`: a file, - for standard input, or a folder or a hub id that `datasets` can load.

    `form` is one of FORMATS; without it the name's suffix tells, or else how the source begins. What gzip has packed is
    unpacked. `split` names the part of a data set, and `config` its configuration. Raises InvalidRequest, or ServeError
    where a package is missing.
    """
    path = Path(source)
    if not source:
        raise InvalidRequest("The input has no name.")
    if source == STANDARD_INPUT or path.is_file() or path.is_fifo():
        if split != SPLIT:
            raise InvalidRequest(f"--split names a part of a data set, and {source} is a file.")
        if config is not None:
            raise InvalidRequest(f"--config names a configuration of a data set, and {source} is a file.")
    if source == STANDARD_INPUT:
        return _of_file("standard input", _spooled(), form)
    if path.is_file() or path.is_fifo():
        return _of_file(source, path if path.is_file() else _spooled(path.open("rb")), form or _by_suffix(path))
    if form or _by_suffix(path):
        raise InvalidRequest(f"{source} is not a file.")
    return _dataset(source, config, split)


def _by_suffix(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    return _SUFFIXES.get(Path(name).suffix)


def _spooled(stream: IO[bytes] | None = None) -> Path:
    """Copies a stream, by default standard input, to its end into a file without a name, and returns a path to that."""
    if stream is None:
        if sys.stdin is None:
            raise InvalidRequest("Standard input is closed.")
        stream = sys.stdin.buffer
    spool = tempfile.TemporaryFile()  # noqa: SIM115 (it is read again, at any time)
    atexit.register(spool.close)
    shutil.copyfileobj(stream, spool)
    spool.flush()
    return Path(f"/proc/self/fd/{spool.fileno()}")


def _of_file(name: str, path: Path, form: str | None) -> Rows:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    opens = cast(Open, partial(gzip.open, path, "rb") if packed else partial(path.open, "rb"))
    try:
        with opens() as file:
            head = file.read(HEAD_BYTES)
        form = _checked_form(name, head, form)
        if form == "parquet":
            if packed:
                raise InvalidRequest(f"{name} is Parquet in gzip: unpack it first.")
            return _parquet(name, path)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InvalidRequest(f"{name} is UTF-16: save it as UTF-8.")
        if form in ("csv", "tsv"):
            return delimited(name, opens, "\t" if form == "tsv" else None)
        return _json(name, opens, head, form)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InvalidRequest(f"{name} is packed with gzip and damaged, or not whole.") from None


def _checked_form(name: str, head: bytes, form: str | None) -> str:
    """The format of a source that begins with `head`. Raises InvalidRequest where none can be told."""
    if form:
        return form
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:1] in (b"[", b"{") or not start:
        return "json"
    raise InvalidRequest(f"The format of {name} cannot be told from its name: give --format, one of {_FORMS}.")


_FORMS = ", ".join(FORMATS)


def _json(name: str, opens: Open, head: bytes, form: str) -> Rows:
    """JSON lines, or an array, however the file is named: the array is told by its beginning."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"[":
        try:
            return rows_of_array(name, opens)
        except InvalidRequest:
            if form == "json":
                raise
    elif form == "json" and _is_one_object(opens):
        raise InvalidRequest(f"{name} is one JSON object over several lines: give an array of objects, or JSON lines.")
    return rows_of_lines(name, opens)


def _is_one_object(opens: Open) -> bool:
    """Whether the source is one object, and its first line is none."""
    with opens() as file:
        try:
            json.loads(file.readline())
            return False
        except (ValueError, RecursionError):
            file.seek(0)
        try:
            return isinstance(json.load(file), dict)
        except (ValueError, RecursionError):
            return False


def _parquet(name: str, path: Path) -> Rows:
    parquet = module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            total, schema = file.metadata.num_rows, file.schema_arrow
    except Exception as error:
        raise InvalidRequest(f"{name} cannot be read as Parquet ({type(error).__name__}).") from None
    if len(set(schema.names)) < len(schema.names):
        raise InvalidRequest(f"{name} has two columns of one name.")

    def read() -> Iterator[DataRow]:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield DataRow(number, record)

    return Rows(name, total, read, tuple(schema.names), schema)


def _dataset(source: str, config: str | None, split: str) -> Rows:
    if not (Path(source).exists() or _ID.fullmatch(source)):
        raise InvalidRequest(f"{source} is neither a file, nor a folder, nor the id of a data set.")
    datasets = module("datasets")
    hub = logging.getLogger("huggingface_hub")  # it tells each of its attempts, for half a minute
    before = hub.level
    hub.setLevel(logging.CRITICAL)
    try:
        dataset = datasets.load_dataset(source, config, split=split)
    except ConnectionError:
        raise InvalidRequest(f"{source} is neither a file nor a folder, and the hub cannot be reached.") from None
    except Exception as error:
        raise InvalidRequest(
            f"{source} is neither a file nor a data set with a split {split!r}{_of(config)} that loads"
            f" ({type(error).__name__})."
        ) from None
    finally:
        hub.setLevel(before)

    def read() -> Iterator[DataRow]:
        for number, record in enumerate(dataset, start=1):
            yield DataRow(number, dict(record))

    return Rows(f"{source}, {split}", len(dataset), read, tuple(dataset.column_names))


def _of(config: str | None) -> str:
    return "" if config is None else f" of {config!r}"


def module(name: str) -> Any:
    """A module of the extra `data`. Raises ServeError where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing = name.partition(".")[0]
        raise ServeError(f"{missing} is not installed: {how_to_install('data')}.") from None
