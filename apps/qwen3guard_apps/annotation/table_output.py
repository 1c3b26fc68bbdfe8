"""The output of `annotate` as CSV or Parquet: JSON lines beside it while the run lasts, and the table at the end.

So a killed run leaves no table that looks whole, and the next run goes on from the lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from qwen3guard_contract.errors import GuardError, InvalidRequest

from qwen3guard_apps.annotation.output import Output
from qwen3guard_apps.annotation.rows import DataRow, Rows

TableRow = tuple[dict[str, Any], dict[str, Any] | None, str | None]
"""A row's record ({} where it could not be read), the guard's verdict or None, and the code of its error or None."""
Write = Callable[[Path, Rows, Callable[[], Iterator[TableRow]], str], None]
"""Writes a table: its path, the rows that it is of, those with their verdicts, and the name of the guard's field."""


class TableOutput:
    """The judged `rows` as the table `path`, which `write_table` writes when all are judged.

    Raises InvalidRequest where `path` is there already and no lines of an unfinished run are beside it.
    """

    def __init__(self, path: Path, field: str, rows: Rows, write_table: Write, reserved: tuple[str, ...] = ()) -> None:
        self.path = path
        self._lines_path = path.with_name(f"{path.name}.partial.jsonl")
        self._lines = Output(self._lines_path, field, name=path, reserved=reserved)
        self.errors_path = self._lines.errors_path
        self._field, self._rows, self._write_table = field, rows, write_table

    @property
    def bad(self) -> int:
        return self._lines.bad

    def __enter__(self) -> TableOutput:
        if self.path.exists() and not self._lines_path.exists():
            raise InvalidRequest(f"{self.path} is there already: name another output, or remove that one.")
        self._lines.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException as failure:
            self._lines.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._lines.__exit__(kind, error, trace)

    def _finish(self) -> None:
        """Writes the table under another name, gives it its own, and removes the lines."""
        unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        try:
            self._write_table(unfinished, self._rows, self._judged, self._field)
            unfinished.replace(self.path)
        except OSError as error:
            raise InvalidRequest(f"{self.path} cannot be written: {error.strerror}.") from None
        finally:
            unfinished.unlink(missing_ok=True)
        self._lines_path.unlink()

    def _judged(self) -> Iterator[TableRow]:
        with self._lines_path.open("rb") as lines:
            for row, text in zip(self._rows.read(), lines, strict=True):
                line = json.loads(text)
                yield row.record or {}, line[self._field], line.get(f"{self._field}_error")

    def resume(self, rows: Iterator[DataRow]) -> int:
        return self._lines.resume(rows)

    def write(self, row: DataRow, result: dict[str, Any] | GuardError) -> None:
        self._lines.write(row, result)


def columns_of(rows: Rows) -> tuple[str, ...]:
    """The fields of the rows, in the order in which they appear."""
    if rows.columns is not None:
        return rows.columns
    names = dict[str, None]()
    for row in rows.read():
        names |= dict.fromkeys(row.record or ())
    return tuple(names)
