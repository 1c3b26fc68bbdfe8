"""Chooses what `annotate` writes by the name of its output: JSON lines, CSV, TSV, Parquet, or standard output."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from qwen3guard_contract.errors import GuardError, InvalidRequest

from qwen3guard_apps.annotation.csv_table import verdict_columns, write_csv
from qwen3guard_apps.annotation.output import Output, check_free
from qwen3guard_apps.annotation.parquet_table import verdict_type, write_parquet
from qwen3guard_apps.annotation.rows import DataRow, Rows
from qwen3guard_apps.annotation.standard_output import StandardOutput
from qwen3guard_apps.annotation.table_output import TableOutput

STANDARD_OUTPUT = "-"
JSON_LINES = (".jsonl", ".ndjson", "")


class RowsOutput(Protocol):
    """Takes rows and their results in order; `bad` counts those that could not be judged, in earlier runs too."""

    @property
    def path(self) -> Path | str: ...
    @property
    def errors_path(self) -> Path | str: ...
    @property
    def bad(self) -> int: ...
    def __enter__(self) -> RowsOutput: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def resume(self, rows: Iterator[DataRow]) -> int: ...
    def write(self, row: DataRow, result: dict[str, Any] | GuardError) -> None: ...


def open_output(path: Path, field: str, rows: Rows) -> RowsOutput:
    """The output for the judged `rows`. Raises InvalidRequest for what is there and is not a file, and for a name whose
    suffix stands for something else, and ServeError where pyarrow is missing for Parquet."""
    if str(path) == STANDARD_OUTPUT:
        return StandardOutput(field)
    if path.exists() and (not path.is_file() or path.parent == Path("/dev")):
        raise InvalidRequest(f"{path} is not a file that can be written: name one, or - for standard output.")
    suffix = path.suffix.lower()
    if suffix in JSON_LINES:
        return Output(path, field)
    check_free(DataRow(1, dict.fromkeys(rows.columns or ())), (field, f"{field}_error"))
    if suffix in (".csv", ".tsv"):
        check_free(DataRow(1, dict.fromkeys(rows.columns or ())), verdict_columns(field))
        write = partial(write_csv, delimiter="," if suffix == ".csv" else "\t")
        return TableOutput(path, field, rows, write, verdict_columns(field))
    if suffix == ".parquet":
        verdict_type()  # pyarrow is missed now, and not when all rows are judged
        return TableOutput(path, field, rows, write_parquet)
    raise InvalidRequest(
        f"{path} ends in {suffix}, which is not written: name an output of .jsonl, .csv, .tsv or .parquet."
    )
