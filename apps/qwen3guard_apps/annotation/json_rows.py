"""Rows from JSON: a line each, or the objects of one array."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from qwen3guard_contract.errors import GuardError, InvalidEncoding, InvalidRequest

from qwen3guard_apps.annotation.rows import DataRow, Rows

Open = Callable[[], IO[bytes]]
"""Opens a source from its beginning."""
LONGEST_NUMBER = 4000
"""The most digits of a whole number; Python reads 4,300."""


class _Unreadable(Exception):
    """Why one object cannot be read although it is JSON."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, value in pairs:
        if name in record:
            raise _Unreadable(f"has two fields {name[:40]!r}")
        record[name] = value
    return record


def _whole_number(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise _Unreadable(f"has a number of {len(text)} digits")
    return int(text)


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole_number)
_LENIENT = json.JSONDecoder(parse_int=str)
"""Finds the end of an object that _STRICT refuses."""


def rows_of_lines(name: str, opens: Open) -> Rows:
    """Blank lines at the end are no rows; others are bad ones, so that the lines of the output are those of the
    source."""

    def read() -> Iterator[DataRow]:
        with opens() as file:
            for number, line in enumerate(_without_blank_end(file), start=1):
                yield _line(number, line)

    with opens() as file:
        return Rows(name, sum(1 for _ in _without_blank_end(file)), read)


def _without_blank_end(lines: Iterable[bytes]) -> Iterator[bytes]:
    blank = list[bytes]()
    for line in lines:
        blank.append(line)
        if line.strip():
            yield from blank
            blank.clear()


def _line(number: int, line: bytes) -> DataRow:
    def bad(error: GuardError) -> DataRow:
        return DataRow(number, None, error)

    try:
        record = _STRICT.decode(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        return bad(InvalidEncoding("The line is not valid UTF-8."))
    except _Unreadable as reason:
        return bad(InvalidRequest(f"The line {reason}."))
    except (ValueError, RecursionError):
        return bad(InvalidRequest("The line is not JSON."))
    return (
        DataRow(number, record) if isinstance(record, dict) else bad(InvalidRequest("The line is not a JSON object."))
    )


def rows_of_array(name: str, opens: Open) -> Rows:
    """The objects of one array, which is held in memory. Raises InvalidRequest where the array cannot be read whole."""
    with opens() as file:
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InvalidRequest(f"{name} is not valid UTF-8.") from None
    try:
        rows = list(_elements(text))
    except (ValueError, RecursionError) as error:
        where = f" ({error})" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidRequest(f"{name} is not a JSON array that can be read to its end{where}.") from None
    return Rows(name, len(rows), lambda: iter(rows))


def _elements(text: str) -> Iterator[DataRow]:
    """Raises JSONDecodeError."""
    at = _after(text, 0, "[")
    if _space(text, at, "]"):
        at = _after(text, at, "]")
    else:
        for number in range(1, len(text) + 1):
            at = _skip(text, at)
            row, at = _element(number, text, at)
            yield row
            if _space(text, at, "]"):
                at = _after(text, at, "]")
                break
            at = _after(text, at, ",")
    if _skip(text, at) != len(text):
        raise json.JSONDecodeError("Extra data", text, _skip(text, at))


def _element(number: int, text: str, at: int) -> tuple[DataRow, int]:
    try:
        record, end = _STRICT.raw_decode(text, at)
    except _Unreadable as reason:
        return DataRow(number, None, InvalidRequest(f"The object {reason}.")), _LENIENT.raw_decode(text, at)[1]
    if isinstance(record, dict):
        return DataRow(number, record), end
    return DataRow(number, None, InvalidRequest("The element is not a JSON object.")), end


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _space(text: str, at: int, sign: str) -> bool:
    """Whether `sign` comes next."""
    return text.startswith(sign, _skip(text, at))


def _after(text: str, at: int, sign: str) -> int:
    at = _skip(text, at)
    if not text.startswith(sign, at):
        raise json.JSONDecodeError(f"Expecting {sign!r}", text, at)
    return at + 1
