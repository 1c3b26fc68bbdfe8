"""The output of `annotate` on standard output: JSON lines. There is nothing to go on with in a later run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from qwen3guard_contract.errors import GuardError

from qwen3guard_apps.annotation.output import check_free, output_line
from qwen3guard_apps.annotation.rows import DataRow


class StandardOutput:
    """Writes rows as they are judged, and the sentences of bad rows to standard error."""

    path = "standard output"
    errors_path = "above"

    def __init__(self, field: str) -> None:
        self.bad = 0
        self._field = field

    def __enter__(self) -> StandardOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def resume(self, _: Iterator[DataRow]) -> int:
        return 0

    def write(self, row: DataRow, result: dict[str, Any] | GuardError) -> None:
        """Raises InvalidRequest where the row has the guard's field already."""
        check_free(row, (self._field, f"{self._field}_error"))
        if isinstance(result, GuardError):
            self.bad += 1
            print(f"row {row.number} is bad: {result.code}: {result}", file=sys.stderr, flush=True)
        sys.stdout.buffer.write(output_line(row, result, self._field))  # UTF-8, whatever the terminal's encoding is
        sys.stdout.buffer.flush()
