"""Reads a benchmark's file as rows of `evaluate`, with a prompt, a response or messages, a label and a category.

A file that does not look like the benchmark is refused.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3guard_contract.errors import GuardError, InvalidRequest

from qwen3guard_apps.annotation.rows import DataRow, Rows, fields_shown, is_missing
from qwen3guard_apps.evaluation.benchmarks import Benchmark, Part, Task

SHOWN = 10
"""So many unknown labels are named."""
OURS = ("prompt", "response", "messages", "label", "category")
"""The fields of the rows that are made here; those of the file with these names are replaced, all others stay."""


@dataclass(frozen=True)
class BenchmarkRows:
    """The rows of a benchmark with what was done to get them. `left_out` counts by reason."""

    rows: Rows
    benchmark: Benchmark
    task: Task
    read: int
    left_out: dict[str, int]

    def sentences(self) -> Iterator[str]:
        """What is told, one sentence each."""
        yield f"{self.benchmark.title}: {self.rows.total:,} {self.task.judges}s of {self.read:,} rows."
        for reason, count in self.left_out.items():
            yield f"{count:,} are left out: {reason}."

    def as_dict(self) -> dict[str, Any]:
        return {"title": self.benchmark.title, "judges": self.task.judges, "read": self.read, "left_out": self.left_out}


def benchmark_rows(rows: Rows, benchmark: Benchmark, *, prompts_only: bool) -> BenchmarkRows:
    """The conversations of `rows`, read as `benchmark` says.

    Raises InvalidRequest where columns are missing, where labels are not known, where a row cannot be read, and where
    nothing is left.
    """
    task = _task(rows, benchmark, prompts_only=prompts_only)
    found: list[DataRow] = []
    left_out, unknown = Counter[str](), Counter[str]()
    for row in rows.read():
        if row.record is None:
            raise InvalidRequest(f"Row {row.number} of {rows.name} cannot be read: {row.error}")
        reason = task.left_out(row.record)
        for part in task.parts:
            try:
                conversation = reason or _conversation(row.record, part)
            except GuardError as error:
                unknown[str(error)] += 1
                continue
            if isinstance(conversation, str):
                left_out[conversation] += 1
            else:
                found.append(DataRow(len(found) + 1, conversation))
    if unknown:
        shown = ", ".join(f"{label} ({count:,})" for label, count in unknown.most_common(SHOWN))
        more = " ..." if len(unknown) > SHOWN else ""
        raise InvalidRequest(
            f"{rows.name} is not {benchmark.title} as published ({benchmark.published}): labels that are not known: "
            f"{shown}{more}."
        )
    if not found:
        reasons = "; ".join(f"{count:,}: {reason}" for reason, count in left_out.items()) or "it is empty"
        raise InvalidRequest(f"No row of {rows.name} is left of {benchmark.title}: {reasons}.")
    made = Rows(rows.name, len(found), lambda: iter(found))
    return BenchmarkRows(made, benchmark, task, rows.total, dict(left_out))


def _task(rows: Rows, benchmark: Benchmark, *, prompts_only: bool) -> Task:
    seen = dict.fromkeys(rows.columns or ())
    for row in rows.read():
        seen |= dict.fromkeys(row.record or {})
    missing: list[list[str]] = [[name for name in task.columns if name not in seen] for task in benchmark.tasks]
    fitting = [task for task, names in zip(benchmark.tasks, missing, strict=True) if not names]
    if not fitting:
        fewest = sorted(missing, key=len)[0]
        names = ", ".join(map(repr, fewest))
        raise InvalidRequest(
            f"{rows.name} is not {benchmark.title} as published ({benchmark.published}): it has no column {names}; "
            f"{fields_shown(seen)}."
        )
    if prompts_only:
        fitting = [task for task in fitting if task.judges == "prompt"]
        if not fitting:
            raise InvalidRequest(f"{rows.name} has no labels of prompts alone: leave --prompts-only out.")
    return fitting[0]


def _conversation(record: dict[str, Any], part: Part) -> dict[str, Any] | str:
    """The row of `part`, or why it is left out. Raises InvalidRequest where its label is not known."""
    level = part.level(record)
    if level is None:
        return "there is no label"
    made: dict[str, Any] = {}
    for name, column in (("prompt", part.prompt), ("response", part.response), ("messages", part.messages)):
        if column is None or (name == "prompt" and part.messages):
            continue
        if is_missing(record.get(column)) or record[column] == "":
            return f"there is no {name}"
        made[name] = record[column]
    category = record.get(part.category) if isinstance(part.category, str) else part.category and part.category(record)
    others = {name: value for name, value in record.items() if name not in OURS}
    return others | made | {"label": level.value, "category": category}


def grouped_rows(path: Path) -> Rows | None:
    """The rows of a JSON file that is an object of lists of rows, or None where it is something else."""
    try:
        with (gzip.open if path.suffix == ".gz" else Path.open)(path, "rb") as file:
            groups = json.load(file)
    except (OSError, ValueError, RecursionError, EOFError):
        return None
    if not isinstance(groups, dict) or not groups or not all(isinstance(each, list) for each in groups.values()):
        return None
    records = [record for group in groups.values() for record in group]
    if not all(isinstance(record, dict) for record in records):
        return None
    numbered = [DataRow(number, record) for number, record in enumerate(records, start=1)]
    return Rows(str(path), len(numbered), lambda: iter(numbered))
