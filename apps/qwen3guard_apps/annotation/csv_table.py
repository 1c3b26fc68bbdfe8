"""Judged rows as CSV (RFC 4180) or TSV: a column for each field of a row and of its verdict."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qwen3guard_apps.annotation.rows import Rows, dumps, is_missing
from qwen3guard_apps.annotation.table_output import TableRow, columns_of

VERDICT_FIELDS = (
    "severity",
    "categories",
    "refusal",
    "strict",
    "loose",
    "unsafe",
    "answer_status",
    "turns_left_out",
    "probabilities",
    "windows",
)
"""The fields of a verdict that have a column: the guard's field, an underline, and this name."""


def verdict_columns(field: str) -> tuple[str, ...]:
    return tuple(f"{field}_{name}" for name in VERDICT_FIELDS)


def write_csv(
    path: Path, rows: Rows, judged: Callable[[], Iterator[TableRow]], field: str, delimiter: str = ","
) -> None:
    """A list or an object is written as JSON, null as an empty cell, and a boolean as true or false."""
    columns = columns_of(rows)
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow([*columns, *verdict_columns(field), f"{field}_error"])
        for record, verdict, error in judged():
            values = [record.get(name) for name in columns] + [(verdict or {}).get(name) for name in VERDICT_FIELDS]
            writer.writerow([_cell(value) for value in (*values, error)])


def _cell(value: Any) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, bool | list | dict):
        return dumps(value) if isinstance(value, dict) else json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
