"""What annotate and evaluate read: every format gives the same rows, and what cannot be read is told by row or by file.

Case 26 of what people send: a CSV or a JSON array given to annotate came back as "161 rows are bad".
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from qwen3guard_apps.annotation.rows import Fields, dumps
from qwen3guard_apps.annotation.sources import FORMATS, open_rows
from qwen3guard_contract import errors
from support.texts import TEXTS

MESSAGES = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
RECORDS: list[dict[str, str | None]] = [
    {"id": str(number), "prompt": text, "response": None if number % 2 else f'"{text},\r\n;\t'}
    for number, text in enumerate(TEXTS)
    if text.strip() == text  # a CSV has no null beside the empty cell
]


def written(form: str, records: list[dict[str, Any]]) -> bytes:
    if form == "jsonl":
        return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode()
    if form == "json":
        return json.dumps(records, indent=2, ensure_ascii=False).encode()
    if form == "parquet":
        file = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(records), file)
        return file.getvalue()
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if form == "tsv" else ",")
    writer.writerow(records[0])
    writer.writerows([["" if value is None else value for value in record.values()] for record in records])
    return text.getvalue().encode()


def read(source: Path | str, form: str | None = None) -> list[dict[str, Any] | None]:
    rows = open_rows(str(source), form=form)
    found = list(rows.read())
    assert [row.number for row in found] == list(range(1, rows.total + 1))
    assert list(rows.read()) == found or any(row.error for row in found)
    return [row.record for row in found]


def errors_of(source: Path, form: str | None = None) -> list[str]:
    return [str(row.error) if row.error else "" for row in open_rows(str(source), form=form).read()]


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_rows(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(form, RECORDS)
    plain, anyhow = tmp_path / f"rows.{form}", tmp_path / "rows.data"
    plain.write_bytes(data)
    anyhow.write_bytes(data)
    assert read(plain) == read(anyhow, form) == RECORDS
    if form in ("json", "jsonl", "parquet"):
        assert read(anyhow) == RECORDS
    if form == "json":
        (tmp_path / "array.jsonl").write_bytes(data)
        assert read(tmp_path / "array.jsonl") == RECORDS
    else:
        (tmp_path / "lines.json").write_bytes(written("jsonl", RECORDS))
        assert read(tmp_path / "lines.json") == RECORDS
    if form != "parquet":
        (tmp_path / f"mark.{form}").write_bytes(b"\xef\xbb\xbf" + data)
        assert read(tmp_path / f"mark.{form}") == RECORDS
        packed = tmp_path / f"rows.{form}.gz"
        packed.write_bytes(gzip.compress(data))
        assert read(packed) == RECORDS
        packed.write_bytes(gzip.compress(data)[:-20])
        with pytest.raises(errors.InvalidRequest, match="damaged, or not whole"):
            read(packed)
    for stdin in (data, gzip.compress(data)) if form != "parquet" else (data,):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        assert read("-", form) == RECORDS


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_is_read_by_what_divides_its_header(delimiter: str, quote: str, tmp_path: Path) -> None:
    header = delimiter.join(f"{quote}{name}{quote}" for name in ("id", "prompt"))
    (tmp_path / "rows.csv").write_text(f'{header}\n1{delimiter}"Hello, you"\n')
    assert read(tmp_path / "rows.csv") == [{"id": "1", "prompt": "Hello, you"}]


def test_random_cells_come_back_as_they_were(tmp_path: Path) -> None:
    source = random.Random(5)
    for number in range(200):
        cells = ["".join(source.choices('a"\n\r,;é水😀 ', k=source.randint(1, 12))) for _ in range(12)]
        records = [{"x": cells[at], "prompt": cells[at + 1]} for at in range(0, 12, 2)]
        for form in ("csv", "tsv"):
            (tmp_path / f"{number}.{form}").write_bytes(written(form, records))
            assert read(tmp_path / f"{number}.{form}") == records


LINES: list[tuple[bytes, str]] = [
    (b'{"prompt": "a"}', ""),
    (b'{"prompt": "a", "prompt": "b"}', "two fields 'prompt'"),
    (b'{"prompt": "a", "x": {"y": 1, "y": 2}}', "two fields 'y'"),
    (b'{"x": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
    (b'{"x": ' + b"9" * 4000 + b"}", ""),
    (b'{"x": NaN, "y": -Infinity, "z": 1e999}', ""),
    (b"[1]", "not a JSON object"),
    (b"7", "not a JSON object"),
    (b'{"prompt": "last"}', ""),
]


def test_a_bad_object_is_one_bad_row_in_lines_and_in_an_array(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(line for line, _ in LINES))
    (tmp_path / "a.json").write_bytes(b"[" + b" ,\n".join(line for line, _ in LINES) + b"]\n")
    lines, array = errors_of(tmp_path / "a.jsonl"), errors_of(tmp_path / "a.json")
    for (_, wanted), line, element in zip(LINES, lines, array, strict=True):
        assert bool(line) is bool(element) is bool(wanted)
        assert wanted in line
        assert wanted in element


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.json", b'[{"prompt": "a"}, {"prompt": "b"', "read to its end"),
        ("a.json", b'[{"prompt": "a"}] x', "Extra data"),
        ("a.json", b'[{"prompt": "a"} {"prompt": "b"}]', "Expecting ','"),
        ("a.json", b'[{"prompt": "a"},]', "read to its end"),
        ("a.json", b"[" * 100_000, "read to its end"),
        ("a.json", b'[{"prompt": "\xff"}]', "not valid UTF-8"),
        ("a.json", b'{\n "data": [\n  {"prompt": "a"}\n ]\n}\n', "one JSON object over several lines"),
        ("a.csv", b"", "has no header"),
        ("a.csv", b"prompt,prompt\na,b\n", "two fields 'prompt'"),
        ("a.csv", b"prompt,,\na,b,c\n", "two fields without a name"),
        ("a.csv", b'prompt,x\n"a,1\nb,2\n', "A quote in the row at line 2 of"),
        ("a.csv", b"prompt\xff,x\na,1\n", "header of"),
        ("a.csv", "prompt,x\n".encode("utf-16"), "UTF-16"),
        ("a.txt", b"prompt,x\na,1\n", "give --format"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("a.parquet", gzip.compress(b"PAR1", mtime=0), "unpack it first"),
        ("a.gz", gzip.compress(b"prompt,x\n", mtime=0), "give --format"),
    ],
)
def test_what_is_wrong_with_a_whole_file_is_told(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(errors.InvalidRequest) as raised:
        read(tmp_path / name)
    assert words in str(raised.value)
    assert str(tmp_path / name) in str(raised.value)


def test_bad_rows_of_a_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'prompt,x\na,1\nb\n\nc,2,3\n"d"e,4\nf\xff,5\n"g ""h""",6')
    found = errors_of(tmp_path / "a.csv")
    for error, wanted in zip(found, ("", "1 cells", "3 cells", "6 is not CSV", "UTF-8", ""), strict=True):
        assert wanted in error
        assert bool(wanted) is bool(error)
    assert read(tmp_path / "a.csv")[-1] == {"prompt": 'g "h"', "x": "6"}


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\r\n", b"\n \n\t\n"])
def test_blank_lines_at_the_end_are_no_rows(end: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\n{"prompt": "a"}\r\n \r\n{"prompt": "b"}' + end)
    assert read(tmp_path / "a.jsonl") == [None, {"prompt": "a"}, None, {"prompt": "b"}]
    (tmp_path / "a.jsonl").write_bytes(end)
    assert read(tmp_path / "a.jsonl") == []


def test_a_file_has_no_parts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a"}')
    for source in (str(tmp_path / "a.jsonl"), "-"):
        with pytest.raises(errors.InvalidRequest, match="--split names a part of a data set"):
            open_rows(source, "test")
    with pytest.raises(errors.InvalidRequest, match="no name"):
        open_rows("")


def test_a_cell_longer_than_pythons_limit(tmp_path: Path) -> None:
    record = {"prompt": "x" * 500_000, "y": "1"}
    (tmp_path / "a.csv").write_bytes(written("csv", [record]))
    assert read(tmp_path / "a.csv") == [record]


def test_messages_in_a_cell_are_those_of_a_list() -> None:
    read_alike: list[Callable[[], Any]] = [
        lambda: Fields().call({"messages": MESSAGES}).values,
        lambda: Fields().call({"messages": json.dumps(MESSAGES), "prompt": None}).values,
    ]
    sent = [{tensor.name: json.loads(value[0]) for tensor, value in each().items()} for each in read_alike]
    assert sent[0] == sent[1]


def test_values_that_json_does_not_have_are_never_written_as_json() -> None:
    line = dumps({"a": float("nan"), "b": [float("inf")], "c": {"d": 10**30}, "e": "\ud800"})
    assert json.loads(line, parse_constant=pytest.fail) == {"a": None, "b": ["inf"], "c": {"d": 10**30}, "e": "\ud800"}
    assert Fields().conversation({"prompt": "a", "response": float("nan")}) == ("a", None, None)


def test_fields_that_no_row_has_are_refused_and_not_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "y": null}\n{"text": "b"}\n')
    rows = open_rows(str(tmp_path / "a.jsonl"), "train")
    for fields, words in (
        (Fields(), "has the field 'prompt' or 'messages'; there are 'text', 'y'"),
        (Fields("text", response="answer"), "'answer' of --response-field; there are"),
        (Fields("text", response="y"), "'y' of --response-field"),
        (Fields("txt"), "'txt' of --prompt-field"),
    ):
        with pytest.raises(errors.InvalidRequest) as raised:
            fields.check(rows)
        assert words in str(raised.value)
    Fields("text").check(rows)


def test_a_missing_file_is_no_data_set(tmp_path: Path) -> None:
    for name, form in (("a.csv", None), ("a.json.gz", None), ("a", "jsonl")):
        with pytest.raises(errors.InvalidRequest, match="is not a file"):
            open_rows(str(tmp_path / name), "train", form)
