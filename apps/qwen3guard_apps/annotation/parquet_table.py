"""Judged rows as Parquet. Needs pyarrow (the extra `data`)."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qwen3guard_contract.labels import Category, Refusal, RiskLevel

from qwen3guard_apps.annotation.rows import Rows
from qwen3guard_apps.annotation.sources import PARQUET_ROWS, module
from qwen3guard_apps.annotation.table_output import TableRow, columns_of


def verdict_type() -> Any:
    """The type of the guard's column: the same whatever the verdicts are, with a column for each probability."""
    arrow = module("pyarrow")

    def of(names: Sequence[str], kind: Any) -> Any:
        return arrow.struct([(name, kind) for name in names])

    number, text = arrow.float64(), arrow.string()
    probabilities = {
        "severity": of([level.value for level in RiskLevel], number),
        "categories": of([*(category.value for category in Category), "None"], number),
        "refusal": of([refusal.value for refusal in Refusal], number),
    }
    fields = [
        ("severity", text),
        ("categories", arrow.list_(text)),
        ("refusal", text),
        ("probabilities", arrow.struct(list(probabilities.items()))),
        *((name, arrow.bool_()) for name in ("strict", "loose", "unsafe")),
        ("answer_status", text),
        ("turns_left_out", arrow.int64()),
    ]
    windows = arrow.struct([("start", arrow.int64()), ("end", arrow.int64()), *fields])
    return arrow.struct([*fields, ("windows", arrow.list_(windows))])


def write_parquet(path: Path, rows: Rows, judged: Callable[[], Iterator[TableRow]], field: str) -> None:
    """Columns of a Parquet input keep their types. A column whose values have no type in common is written as JSON."""
    arrow, parquet = module("pyarrow"), module("pyarrow.parquet")
    types = _types(rows, judged)
    for name in (name for name, kind in types.items() if kind is None):
        print(f"note: the values of {name!r} have no type in common, and are written as JSON", file=sys.stderr)
    ends = [(field, verdict_type()), (f"{field}_error", arrow.string())]
    schema = arrow.schema([*((name, kind or arrow.string()) for name, kind in types.items()), *ends])
    with parquet.ParquetWriter(path, schema) as writer:
        for batch in _batches(judged):
            columns = [_column([record.get(name) for record, *_ in batch], kind) for name, kind in types.items()]
            columns.append(arrow.array([verdict for _, verdict, _ in batch], ends[0][1]))
            columns.append(arrow.array([error for *_, error in batch], arrow.string()))
            writer.write_table(arrow.table(columns, schema=schema))


def _batches(judged: Callable[[], Iterator[TableRow]]) -> Iterator[list[TableRow]]:
    source = judged()
    while batch := list(itertools.islice(source, PARQUET_ROWS)):
        yield batch


def _column(values: list[Any], kind: Any) -> Any:
    arrow = module("pyarrow")
    if kind is None:
        return arrow.array(
            [None if value is None else json.dumps(value, default=str) for value in values], arrow.string()
        )
    return arrow.array(values, kind)


def _types(rows: Rows, judged: Callable[[], Iterator[TableRow]]) -> dict[str, Any]:
    """The type of each column; None stands for values that have none in common."""
    arrow = module("pyarrow")
    types: dict[str, Any] = dict.fromkeys(columns_of(rows), arrow.null())
    if rows.schema is not None:
        types = {name: rows.schema.field(name).type for name in types}
    for batch in _batches(judged):
        for name, kind in types.items():
            if kind is not None:
                types[name] = _common(kind, [record.get(name) for record, *_ in batch], fixed=rows.schema is not None)
    return {name: arrow.string() if kind == arrow.null() else kind for name, kind in types.items()}


def _common(kind: Any, values: list[Any], *, fixed: bool) -> Any:
    """A type for values of `kind` and for `values`, or None where there is none. A `fixed` one is not widened."""
    arrow = module("pyarrow")
    try:
        found = arrow.array(values, kind).type if fixed else arrow.array(values).type
        if not fixed:
            schemas = [arrow.schema([("value", each)]) for each in (kind, found)]
            kind = arrow.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (arrow.ArrowException, TypeError, ValueError, OverflowError):
        return None
    return None if _has_nothing(kind) else kind


def _has_nothing(kind: Any) -> bool:
    """Whether an object without fields is in it, which Parquet cannot hold."""
    arrow = module("pyarrow")
    if not arrow.types.is_nested(kind):
        return False
    inner = [kind.field(index).type for index in range(kind.num_fields)]
    return (arrow.types.is_struct(kind) and not inner) or any(map(_has_nothing, inner))
