"""The output of `annotate` as JSON lines, one a row, in the order of the input, so that whole lines are the rows done.

A killed run leaves complete lines and at most one torn line, which the next run cuts off. The sentence of a bad row is
written to the errors file before the row's line, so that every bad row's line has its sentence.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from qwen3guard_contract.errors import GuardError, InvalidRequest

from qwen3guard_apps.annotation.rows import DataRow, dumps


def beginning(row: DataRow, field: str) -> bytes:
    """The beginning of the row's line: the record, up to the value of the guard's field."""
    opening = dumps(row.record or {})[:-1]
    return f"{opening}{', ' if row.record else ''}{json.dumps(field)}: ".encode()


def output_line(row: DataRow, result: dict[str, Any] | GuardError, field: str) -> bytes:
    """The line of a row with its verdict in `field`, or with null there and the code of its error."""
    if isinstance(result, GuardError):
        end = f"null, {json.dumps(f'{field}_error')}: {json.dumps(result.code)}}}\n"
    else:
        end = f"{json.dumps(result, ensure_ascii=False)}}}\n"
    return beginning(row, field) + end.encode()


def check_free(row: DataRow, taken: Collection[str]) -> None:
    """Raises InvalidRequest where the row has one of the fields that the guard writes."""
    already = sorted(name for name in row.record or () if name in taken)
    if already:
        raise InvalidRequest(f"Row {row.number} has a field {already[0]!r} already: name another by --guard-field.")


class Output:
    """Appends rows to `path`, and the errors of bad rows to the errors file beside it.

    A row gets the field `field`, and a bad row `field`_error too; rows may have no field of `reserved` either. The
    errors file is named after the whole of `name`, by default after `path` without its suffix. A run that fails before
    its first row leaves no file. A context manager, which holds a lock on `path`; it raises InvalidRequest where
    another run holds the lock, or a file cannot be written.
    """

    def __init__(self, path: Path, field: str, *, name: Path | None = None, reserved: Collection[str] = ()) -> None:
        self.path = path
        self.errors_path = path.with_name(f"{name.name if name else path.stem}.errors.jsonl")
        self.bad = 0
        self._field = field
        self._taken = {field, f"{field}_error", *reserved}

    def __enter__(self) -> Output:
        self._file = self._open(self.path)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InvalidRequest(f"Another run is writing {self.path}.") from None
        self._errors = self._open(self.errors_path)
        return self

    def _open(self, path: Path) -> IO[bytes]:
        try:
            path.touch()
            return path.open("r+b")
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be written: {error.strerror}.") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._errors.close()
        nothing = not self._file.seek(0, os.SEEK_END)
        self._file.close()
        if kind and nothing:
            self.path.unlink()
        if not self.bad and (nothing or not kind):
            self.errors_path.unlink()

    def resume(self, rows: Iterator[DataRow]) -> int:
        """Takes the rows that an earlier run has written from `rows`, cuts off a torn line, and returns their number.

        Raises InvalidRequest where a line does not belong to its row.
        """
        done = size = last = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            row = next(rows, None)
            if row is None or not line.startswith(beginning(row, self._field)):
                raise InvalidRequest(
                    f"Line {done + 1} of {self.path} does not continue this input with these options; "
                    "name another output, or remove that one."
                )
            done += 1
            last = row.number
            size += len(line)
        self._cut(self._file, size)
        self._cut(self._errors, self._errors_size(last))
        return done

    def _errors_size(self, last: int) -> int:
        """Counts the errors of rows up to number `last`, and returns their size in bytes."""
        size = 0
        for line in self._errors:
            if not line.endswith(b"\n") or json.loads(line)["row"] > last:
                break
            self.bad += 1
            size += len(line)
        return size

    def _cut(self, file: IO[bytes], size: int) -> None:
        file.seek(size)
        file.truncate()

    def write(self, row: DataRow, result: dict[str, Any] | GuardError) -> None:
        """Appends the line of `row`, and before it the sentence of a GuardError to the errors file.

        Raises InvalidRequest where the row has the field already.
        """
        check_free(row, self._taken)
        if isinstance(result, GuardError):
            self.bad += 1
            self._append(self._errors, {"row": row.number, "code": result.code, "error": str(result)})
        self._file.write(output_line(row, result, self._field))
        self._file.flush()

    def _append(self, file: IO[bytes], record: dict[str, Any]) -> None:
        file.write(f"{dumps(record)}\n".encode())
        file.flush()
