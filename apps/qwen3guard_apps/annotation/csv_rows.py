"""Rows from CSV or TSV: a header with the names of the fields, then a record a row. An empty cell is null."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from typing import Any

from qwen3guard_contract.errors import InvalidEncoding, InvalidRequest

from qwen3guard_apps.annotation.json_rows import Open
from qwen3guard_apps.annotation.rows import DataRow, Rows

LARGEST_CELL = 2**31 - 1
"""In characters; Python's own limit is 131,072."""


def delimited(name: str, opens: Open, delimiter: str | None) -> Rows:
    """Raises InvalidRequest for a source that cannot be read as a whole: without a header, or with a quote that nothing
    ends. `delimiter` None takes a comma, or what else divides the header: a semicolon or a tab."""
    csv.field_size_limit(LARGEST_CELL)
    delimiter = delimiter or _delimiter(opens)
    with _text(opens) as file:
        columns = _header(name, csv.reader(file, delimiter=delimiter, strict=True))

    def read() -> Iterator[DataRow]:
        with _text(opens) as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            next(reader)
            yield from _rows(name, reader, columns)

    return Rows(name, sum(1 for _ in read()), read, columns)


def _text(opens: Open) -> io.TextIOWrapper:
    """The source as text. Bytes that are not UTF-8 become lone surrogates, which `_rows` finds."""
    return io.TextIOWrapper(opens(), "utf-8-sig", errors="surrogateescape", newline="")


def _delimiter(opens: Open) -> str:
    for delimiter in (",", ";", "\t"):
        with _text(opens) as file, contextlib.suppress(csv.Error):
            if len(next(csv.reader(file, delimiter=delimiter, strict=True), ())) > 1:
                return delimiter
    return ","


def _header(name: str, reader: Any) -> tuple[str, ...]:
    try:
        columns = tuple(next(reader, ()))
    except csv.Error as error:
        raise InvalidRequest(f"The header of {name} cannot be read: {error}.") from None
    if not any(columns):
        raise InvalidRequest(f"{name} has no header: its first line must name the fields.")
    if not all(map(_is_utf8, columns)):
        raise InvalidRequest(f"The header of {name} is not valid UTF-8.")
    for column in columns:
        if columns.count(column) > 1:
            raise InvalidRequest(f"The header of {name} has two fields {repr(column) if column else 'without a name'}.")
    return columns


def _rows(name: str, reader: Any, columns: tuple[str, ...]) -> Iterator[DataRow]:
    number = 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise InvalidRequest(f"A quote in the row at line {line} of {name} has no end.") from None
            number += 1
            yield DataRow(number, None, InvalidRequest(f"Line {line} is not CSV: {error}."))
            continue
        if cells is None:
            return
        if cells:
            number += 1
            yield _row(number, line, cells, columns)


def _row(number: int, line: int, cells: list[str], columns: tuple[str, ...]) -> DataRow:
    if len(cells) != len(columns):
        sentence = f"The row at line {line} has {len(cells)} cells, and the header {len(columns)}."
        return DataRow(number, None, InvalidRequest(sentence))
    if not all(map(_is_utf8, cells)):
        return DataRow(number, None, InvalidEncoding("The row is not valid UTF-8."))
    return DataRow(number, {column: cell or None for column, cell in zip(columns, cells, strict=True)})


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\udc80" <= each <= "\udcff" for each in text)
