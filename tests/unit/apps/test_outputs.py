"""What annotate writes: the same rows and verdicts in every format, and no table that looks whole and is not.

Case 26 of what people send: `annotate x.parquet out.parquet` wrote JSON lines under that name.
"""

from __future__ import annotations

import asyncio
import csv
import datetime
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from qwen3guard_apps.annotation import annotate
from qwen3guard_apps.annotation.csv_table import VERDICT_FIELDS, verdict_columns
from qwen3guard_apps.annotation.flight import Flight
from qwen3guard_apps.annotation.outputs import open_output
from qwen3guard_apps.annotation.parquet_table import verdict_type
from qwen3guard_apps.annotation.rows import DataRow, Rows, dumps
from qwen3guard_apps.annotation.sources import open_rows
from qwen3guard_apps.cli import classify
from qwen3guard_apps.cli.main import parser
from qwen3guard_contract import errors
from qwen3guard_contract.labels import AnswerStatus, Category, RiskLevel
from qwen3guard_contract.thresholds import Thresholds
from qwen3guard_contract.verdict import Classification, Window

SUFFIXES = ("jsonl", "csv", "tsv", "parquet")
VERDICT: dict[str, Any] = {
    "severity": "Unsafe",
    "categories": ["Violent", "PII"],
    "refusal": None,
    "probabilities": {
        "severity": {"Safe": 0.25, "Unsafe": 0.5, "Controversial": 0.25},
        "categories": {**{category.value: 0.125 for category in Category}, "None": 0.0},
        "refusal": {},
    },
    "strict": True,
    "loose": True,
    "unsafe": True,
    "answer_status": "complete",
    "turns_left_out": 0,
}


def rows_of(records: list[dict[str, Any] | None], columns: tuple[str, ...] | None = None) -> Rows:
    def read() -> Iterator[DataRow]:
        for number, record in enumerate(records, start=1):
            yield DataRow(number, record, None if record is not None else errors.InvalidRequest("No JSON."))

    return Rows("records", len(records), read, columns)


async def ask(record: dict[str, Any]) -> dict[str, Any]:
    if not record.get("prompt"):
        raise errors.EmptyText("Empty.")
    return VERDICT | {"severity": "Safe" if "safe" in str(record["prompt"]) else "Unsafe"}


def judge(rows: Rows, out: Path) -> int:
    return asyncio.run(annotate.write_all(rows, open_output(out, "guard", rows), ask, Flight(1)))


def table(path: Path) -> list[dict[str, Any]]:
    """The rows that `path` holds, in the form of JSON lines."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".parquet":
        return list(parquet.read_table(path).to_pylist())
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


RECORDS: list[dict[str, Any] | None] = [
    {"id": 1, "prompt": 'a "safe"\r\n,one\rhere', "n": None},
    {"id": 2, "prompt": "", "n": 2.5},
    None,
    {"id": 3, "prompt": "é 水 😀", "tags": ["x"], "n": 3},
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_has_the_same_rows_and_verdicts(suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"out.{suffix}"
    assert judge(rows_of(RECORDS), out) == 2
    found = table(out)
    assert len(found) == len(RECORDS)
    for record, row in zip(RECORDS, found, strict=True):
        code = "INVALID_REQUEST" if record is None else "" if record["prompt"] else "EMPTY_TEXT"
        bad = bool(code)
        for name, value in (record or {}).items():
            if suffix in ("csv", "tsv"):
                text = json.dumps(value) if isinstance(value, list) else "" if value is None else str(value)
                assert row[name] == text
            else:
                assert row[name] == value
        assert (row.get("guard_error") or "") == code
        if suffix in ("csv", "tsv"):
            severity = row["guard_severity"] or None
            assert bad or json.loads(row["guard_probabilities"]) == VERDICT["probabilities"]
            assert bad or json.loads(row["guard_categories"]) == VERDICT["categories"]
        else:
            severity = row["guard"] and row["guard"]["severity"]
            kept = row["guard"] and row["guard"]["probabilities"]["categories"]
            assert kept == (None if bad else VERDICT["probabilities"]["categories"])
        assert severity == (None if bad else "Safe" if record and record["id"] == 1 else "Unsafe")
    errors_file = f"{'out' if suffix == 'jsonl' else out.name}.errors.jsonl"
    assert [row["row"] for row in table(tmp_path / errors_file)] == [2, 3]
    assert {each.name for each in tmp_path.iterdir()} == {out.name, errors_file}


def test_parquet_keeps_the_types_of_parquet(tmp_path: Path) -> None:
    day = datetime.date(2026, 1, 2)
    schema = pyarrow.schema(
        [
            ("prompt", pyarrow.large_string()),
            ("day", pyarrow.date32()),
            ("raw", pyarrow.binary()),
            ("n", pyarrow.int8()),
        ]
    )
    wanted = pyarrow.Table.from_pylist([{"prompt": "a", "day": day, "raw": b"\xff", "n": None}] * 3, schema=schema)
    parquet.write_table(wanted, tmp_path / "in.parquet")
    assert judge(open_rows(str(tmp_path / "in.parquet"), "train"), tmp_path / "out.parquet") == 0
    assert parquet.read_table(tmp_path / "out.parquet").select(schema.names).equals(wanted)


def test_values_that_parquet_has_no_type_for_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd: list[Any] = [1, "a", {}, 10**30, "\ud800"]
    records: list[dict[str, Any] | None] = [{"prompt": "a", "odd": value, "empty": None, "o": {}} for value in odd]
    judge(rows_of(records), tmp_path / "out.parquet")
    found = table(tmp_path / "out.parquet")
    assert [json.loads(row["odd"]) for row in found] == odd
    assert [row["empty"] for row in found] == [None] * len(odd)
    assert "'odd' have no type in common" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_killed_run_leaves_no_table_and_goes_on(suffix: str, tmp_path: Path) -> None:
    records: list[dict[str, Any] | None] = [{"id": number, "prompt": f"p{number}"} for number in range(20)]
    out = tmp_path / f"out.{suffix}"
    asked: list[int] = []

    async def dies(record: dict[str, Any]) -> dict[str, Any]:
        asked.append(record["id"])
        if len(asked) in (6, 13):
            raise errors.TokenRefused("No.")
        return await ask(record)

    for _ in range(2):
        rows = rows_of(records)
        with pytest.raises(errors.TokenRefused):
            asyncio.run(annotate.write_all(rows, open_output(out, "guard", rows), dies, Flight(1)))
        assert not out.exists()
        with (tmp_path / f"{out.name}.partial.jsonl").open("ab") as torn:
            torn.write(b'{"id": ')
    judge(rows_of(records), out)
    assert [int(row["id"]) for row in table(out)] == list(range(20))
    assert {each.name for each in tmp_path.iterdir()} == {out.name}
    with pytest.raises(errors.InvalidRequest, match="is there already"):
        judge(rows_of(records), out)


def test_a_table_that_cannot_be_written_leaves_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qwen3guard_apps.annotation.outputs.write_parquet", full)
    with pytest.raises(errors.InvalidRequest, match="No space left"):
        judge(rows_of(RECORDS), tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    monkeypatch.undo()
    judge(rows_of(RECORDS), tmp_path / "out.parquet")
    assert len(table(tmp_path / "out.parquet")) == len(RECORDS)


@pytest.mark.parametrize("name", ["out.json", "out.txt", "out.jsonl.gz", "out.xlsx", "out.parq"])
def test_no_other_suffix_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidRequest, match="is not written"):
        open_output(tmp_path / name, "guard", rows_of([]))
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_not_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path, tmp_path / "pipe.jsonl", Path(), Path("/dev/full"), Path("/dev/stdout"), Path("/dev/zero")):
        with pytest.raises(errors.InvalidRequest, match="not a file that can be written"):
            open_output(path, "guard", rows_of([{"prompt": "a"}]))


def test_outputs_of_one_stem_have_their_own_errors_and_a_run_without_rows_leaves_nothing(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        judge(rows_of(RECORDS), tmp_path / f"out.{suffix}")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 2 * len(SUFFIXES)
    for suffix in SUFFIXES:
        judge(rows_of(RECORDS[:1]), tmp_path / f"good.{suffix}")
        with pytest.raises(KeyboardInterrupt), open_output(tmp_path / f"gone.{suffix}", "guard", rows_of(RECORDS)):
            raise KeyboardInterrupt
        (tmp_path / f"good.{suffix}").unlink()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_errors_are_not_written_over_the_input(tmp_path: Path) -> None:
    source = tmp_path / "out.errors.jsonl"
    source.write_text('{"prompt": "a"}\n')
    with pytest.raises(errors.InvalidRequest, match="name another output"):
        annotate.run(parser().parse_args(["annotate", str(source), str(tmp_path / "out.jsonl")]))
    assert source.read_text() == '{"prompt": "a"}\n'


def test_a_field_of_the_guards_name_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    for suffix, taken in itertools.product(("csv", "parquet"), ("guard", "guard_error", "guard_severity")):
        if (suffix, taken) == ("parquet", "guard_severity"):
            continue
        rows = rows_of([{"prompt": "a", taken: 1}], ("prompt", taken))
        with pytest.raises(errors.InvalidRequest, match=f"{taken!r} already"):
            open_output(tmp_path / f"out.{suffix}", "guard", rows)
    assert not list(tmp_path.iterdir())


def test_standard_output_has_lines_alone_and_the_errors_go_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = io.BytesIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", SimpleNamespace(buffer=taken))
        assert judge(rows_of(RECORDS), Path("-")) == 2
    lines = [json.loads(line) for line in taken.getvalue().decode("utf-8").splitlines()]
    assert [row.get("guard_error") for row in lines] == [None, "EMPTY_TEXT", "INVALID_REQUEST", None]
    assert "row 3 is bad: INVALID_REQUEST: No JSON." in capsys.readouterr().err
    assert all(dumps(record or {})[:-1].encode() in taken.getvalue() for record in RECORDS)


def test_each_field_of_a_verdict_has_its_column() -> None:
    """Also those of its windows, which are verdicts."""
    plain = Classification(
        RiskLevel.SAFE, (), None, dict.fromkeys(RiskLevel, 0.5), {}, {}, False, False, False, "", "x",
        AnswerStatus.COMPLETE,
    )  # fmt: skip
    whole = annotate.as_dict(replace(plain, windows=(Window(0, 5, plain),)))
    assert tuple(f"guard_{name}" for name in VERDICT_FIELDS) == verdict_columns("guard")
    assert set(whole) == set(VERDICT_FIELDS) == {field.name for field in verdict_type()}
    window = verdict_type().field("windows").type.value_type
    assert set(whole["windows"][0]) == {field.name for field in window}
    read = pyarrow.array([whole], verdict_type()).to_pylist()[0]
    assert read["windows"][0]["end"] == 5
    assert read["probabilities"]["severity"] == whole["probabilities"]["severity"]


def test_one_unsafe_window_makes_a_turn_unsafe() -> None:
    """Thresholds decide on every window: the one of the highest level is not always the one above its threshold."""
    limits = Thresholds(0.9, {Category.PII: 0.1})
    safe = Classification(
        RiskLevel.SAFE, (), None, {RiskLevel.SAFE: 0.8}, {Category.PII: 1.0}, {}, False, False, False, "", "",
        AnswerStatus.COMPLETE,
    )  # fmt: skip
    worst = replace(
        safe, severity=RiskLevel.UNSAFE, categories=(Category.VIOLENT,), severity_probabilities={RiskLevel.SAFE: 0.2}
    )
    windows = tuple(Window(at, at + 1, each) for at, each in enumerate((worst, safe)))
    assert not limits.is_unsafe(worst)
    assert annotate.as_dict(replace(worst, windows=windows), limits)["unsafe"] is True
    assert classify.is_unsafe(replace(worst, windows=windows), None, limits)
    assert not classify.is_unsafe(worst, None, limits)
