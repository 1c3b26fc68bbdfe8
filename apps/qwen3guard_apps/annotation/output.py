"""The output of `annotate`: one line a row, in the input's order, so that the whole lines are what is done.

A killed run leaves whole lines and at most one torn one, which the next run cuts off. A bad row's sentence is written
beside the output, before its line: no line can be there without it.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from qwen3guard_contract.errors import GuardError, InvalidRequest

from qwen3guard_apps.annotation.rows import DataRow, dumps


class Output:
    """Appends to `path` and to its errors file; `field` is what a row gets, and `field`_error on a bad one.

    A context manager, which holds a lock on `path`. Raises InvalidRequest where another run holds it, or a file
    cannot be written.
    """

    def __init__(self, path: Path, field: str) -> None:
        self.path = path
        self.errors_path = path.with_name(f"{path.stem}.errors.jsonl")
        self.bad = 0
        self._field = field

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
        self._file.close()
        if not kind and not self.bad:
            self.errors_path.unlink()

    def resume(self, rows: Iterator[DataRow]) -> int:
        """How many of `rows` an earlier run has written whole; takes as many from `rows`, and cuts off the rest.

        Raises InvalidRequest where a line is not that of its row.
        """
        done = size = last = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            row = next(rows, None)
            if row is None or not line.startswith(self._beginning(row)):
                raise InvalidRequest(
                    f"Line {done + 1} of {self.path} does not continue this input with these options; "
                    "name another output, or remove that one."
                )
            done += 1
            last = row.number
            size += len(line)
        self._cut(self._file, size)
        self._cut(self._errors, self._errors_until(last))
        return done

    def _errors_until(self, last: int) -> int:
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

    def _beginning(self, row: DataRow) -> bytes:
        """Of the row's line, up to what the guard found."""
        begun = dumps(row.record or {})[:-1]
        return f"{begun}{', ' if row.record else ''}{json.dumps(self._field)}: ".encode()

    def write(self, row: DataRow, found: dict[str, Any] | GuardError) -> None:
        """Appends the line of `row`, and of a GuardError its sentence beside it.

        Raises InvalidRequest where the row has the field already.
        """
        names = {self._field, f"{self._field}_error"}
        if row.record and (taken := names & row.record.keys()):
            raise InvalidRequest(f"Row {row.number} has a field {min(taken)!r} already; name another for the guard.")
        if isinstance(found, GuardError):
            self.bad += 1
            self._append(self._errors, {"row": row.number, "code": found.code, "error": str(found)})
            end = f"null, {json.dumps(self._field + '_error')}: {json.dumps(found.code)}}}\n"
        else:
            end = f"{json.dumps(found, ensure_ascii=False)}}}\n"
        self._file.write(self._beginning(row) + end.encode())
        self._file.flush()

    def _append(self, file: IO[bytes], record: dict[str, Any]) -> None:
        file.write(f"{dumps(record)}\n".encode())
        file.flush()
