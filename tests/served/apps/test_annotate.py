"""annotate: every row once and in order, whatever kills it, whatever the row holds, and whatever the server refuses."""

from __future__ import annotations

import csv
import json
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from qwen3guard_apps.annotation.sources import open_rows
from qwen3guard_client import GuardClient
from qwen3guard_contract import errors
from qwen3guard_contract.extras import how_to_install
from qwen3guard_server.server import EmbeddedServer
from support.command import COMMAND, fails, run
from support.later import datasets
from support.places import ROOT
from support.texts import TEXTS

PAIR: dict[str, Any] = {"prompt": "How do I bake bread?", "response": "Mix flour and water."}
DOCS = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_row_keeps_its_fields_and_gets_the_verdict_of_classify(
    server: EmbeddedServer, guard: GuardClient, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    rows: list[dict[str, Any]] = [
        {"id": 1, "prompt": "How do I bake bread?", "é": [None, 2.5]},
        PAIR,
        {"messages": turns, "prompt": "unused"},
    ]
    out = tmp_path / "out.jsonl"
    assert run("annotate", write(tmp_path / "in.jsonl", rows), out, "--url", server.url).returncode == 0
    wanted = [guard.classify(rows[0]["prompt"]), guard.classify(**PAIR), guard.classify(messages=turns)]
    for row, found, verdict in zip(rows, lines(out), wanted, strict=True):
        kept = found.pop("guard")
        assert found == row
        assert kept.items() <= json.loads(verdict.as_json()).items()
        decisions = {"strict", "loose", "unsafe"}
        assert (
            set(kept)
            == {"severity", "categories", "refusal", "probabilities", "answer_status", "turns_left_out"} | decisions
        )
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_bad_rows_keep_their_line_and_say_why_beside_it(server: EmbeddedServer, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    bad = [b"", b"{", b"[]", b'{"prompt": "\xff"}', b'{"prompt": ""}', b"{}", b'{"prompt": 5}', b"[" * 100_000]
    bad += [b'{"prompt": "\\ud800"}', b'{"messages": [{"role": "user"}]}', b'{"prompt": null, "x": 1}']
    bad.insert(0, b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]}')
    good = json.dumps(PAIR).encode()
    source.write_bytes(b"\n".join([good, *bad, good]))
    out = tmp_path / "out.jsonl"
    result = run("annotate", source, out, "--url", server.url)
    assert result.returncode == 3
    assert f"{len(bad)} are bad, see {tmp_path / 'out.errors.jsonl'}" in result.stderr.decode()
    found = lines(out)
    assert len(found) == len(bad) + 2
    assert found[0] == found[-1]
    assert [row["guard"] for row in found[1:-1]] == [None] * len(bad)
    reported = lines(tmp_path / "out.errors.jsonl")
    assert [row["row"] for row in reported] == list(range(2, len(bad) + 2))
    assert [row["code"] for row in reported] == [row["guard_error"] for row in found[1:-1]]
    assert all(row["code"] in errors.BY_CODE and row["error"].endswith(".") for row in reported)
    assert "'image_url'" in reported[0]["error"]
    assert found[-2]["x"] == 1
    again = run("annotate", source, out, "--url", server.url)
    assert again.returncode == 3
    assert f"0 rows in 0.0 s (0.0 rows/s) and {len(found)} by an earlier run" in again.stderr.decode()
    assert lines(tmp_path / "out.errors.jsonl") == reported


def test_a_run_killed_again_and_again_loses_no_row_and_doubles_none(server: EmbeddedServer, tmp_path: Path) -> None:
    rows = [{"id": number, "prompt": TEXTS[number % 10]} if number % 7 else {"id": number} for number in range(150)]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    dice = random.Random(3)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        with subprocess.Popen([COMMAND, "annotate", source, out, "--url", server.url, "--in-flight", "8"]) as process:
            while not out.exists() or out.read_bytes().count(b"\n") < share * len(rows):
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
        with out.open("ab") as file:
            file.write(b'{"id": 1, "prom'[: dice.randint(0, 15)])
    assert run("annotate", source, out, "--url", server.url).returncode == 3
    assert [row["id"] for row in lines(out)] == list(range(150))
    assert [row["row"] - 1 for row in lines(tmp_path / "out.errors.jsonl")] == list(range(0, 150, 7))
    assert [row["id"] for row in lines(out) if row["guard"] is None] == list(range(0, 150, 7))
    whole = tmp_path / "whole.jsonl"
    run("annotate", source, whole, "--url", server.url)
    same = [{**row, "guard": row["guard"] and row["guard"]["severity"]} for row in lines(out)]
    assert same == [{**row, "guard": row["guard"] and row["guard"]["severity"]} for row in lines(whole)]


def test_parquet_json_and_a_data_set_give_the_same_rows(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": number, "prompt": text, "response": None} for number, text in enumerate(TEXTS)]
    write(tmp_path / "rows.jsonl", rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    monkeypatch.setattr("qwen3guard_apps.annotation.sources.PARQUET_ROWS", 3)
    folder = tmp_path / "set"
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-0.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for source in (tmp_path / "rows.jsonl", tmp_path / "rows.parquet", folder):
        found = open_rows(str(source), "train")
        assert found.total == len(rows)
        assert [(row.number, row.record) for row in found.read()] == list(enumerate(rows, start=1))
    outputs = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for name, out in zip(("rows.jsonl", "rows.parquet"), outputs, strict=True):
        assert run("annotate", tmp_path / name, out, "--url", server.url).returncode == 0
    decided = [[(row["id"], row["guard"]["severity"]) for row in lines(out)] for out in outputs]
    assert decided[0] == decided[1]


def test_sources_that_are_none_and_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(run("annotate", tmp_path / "none.jsonl", tmp_path / "out.jsonl"), "is not a file")
    broken = tmp_path / "x.parquet"
    broken.write_bytes(b"no")
    fails(run("annotate", broken, tmp_path / "out.jsonl"), "cannot be read as Parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.InvalidRequest, match="neither a file nor a data set"):
        open_rows(str(tmp_path / "empty"), "train")
    fails(run("annotate", tmp_path / "none", tmp_path / "out.jsonl"), "neither a file, nor a folder, nor the id")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails(run("annotate", "some/set", tmp_path / "out.jsonl"), "and the hub cannot be reached")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(errors.ServeError, match=re.escape(how_to_install("data"))):
        open_rows("some/set", "train")


def test_no_server_is_said_at_once_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    fails(run("annotate", write(tmp_path / "in.jsonl", [PAIR]), out, "--url", "127.0.0.1:9"), "cannot be reached")
    assert not out.exists()
    fails(run("annotate", tmp_path / "in.jsonl", tmp_path / "no" / "out.jsonl"), "cannot be written")


def test_annotate_decides_by_thresholds(server: EmbeddedServer, tmp_path: Path) -> None:
    limits = tmp_path / "t.json"
    limits.write_text('{"default": 0.3}')
    out = tmp_path / "out.jsonl"
    rows = [{"prompt": text} for text in TEXTS]
    command = ("annotate", write(tmp_path / "in.jsonl", rows), out, "--url", server.url, "--thresholds", limits)
    assert run(*command).returncode == 0
    for row in lines(out):
        assert row["guard"]["unsafe"] is (1 - row["guard"]["probabilities"]["severity"]["Safe"] > 0.3)


def commands() -> Iterator[str]:
    for block in re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL):
        yield from block.splitlines()


def test_the_documents_commands_run_as_written(server: EmbeddedServer, tmp_path: Path) -> None:
    for name in ("demo",):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    assert len(list(commands())) >= 3
    for command in commands():
        shown = command.replace("127.0.0.1:8001", server.url)
        assert command != shown
        done = subprocess.run(["bash", "-c", shown], cwd=tmp_path, capture_output=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL))
def test_the_documents_python_runs_as_written(
    server: EmbeddedServer, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "127.0.0.1:8001" in code
    exec(compile(code.replace("127.0.0.1:8001", server.url), "data.md", "exec"), {})
    assert capsys.readouterr().out


def test_every_format_in_and_out_has_the_same_verdicts(server: EmbeddedServer, tmp_path: Path) -> None:
    """Case 26 of what people send: a CSV, a JSON array or Parquet, in and out, and standard input and output."""
    rows = [{"id": str(number), "prompt": text} for number, text in enumerate(TEXTS[:5])]
    source = write(tmp_path / "in.jsonl", rows)
    assert run("annotate", source, tmp_path / "out.jsonl", "--url", server.url).returncode == 0
    wanted = [(row["id"], row["guard"]["severity"]) for row in lines(tmp_path / "out.jsonl")]
    (tmp_path / "in.json").write_text(json.dumps(rows, indent=1))
    with (tmp_path / "in.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ("id", "prompt"))
        table.writeheader()
        table.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    for form in ("json", "csv", "parquet"):
        given = tmp_path / f"in.{form}"
        for out in (tmp_path / f"{form}.csv", tmp_path / f"{form}.parquet"):
            assert run("annotate", given, out, "--url", server.url).returncode == 0
            found = open_rows(str(out), "train").read()
            records = [row.record or {} for row in found]
            severities = [row.get("guard_severity") or row["guard"]["severity"] for row in records]
            assert list(zip([row["id"] for row in records], severities, strict=True)) == wanted
        data = given.read_bytes()
        piped = run("annotate", "-", "-", "--url", server.url, stdin=data)
        if form == "csv":
            fails(piped, "give --format")
            piped = run("annotate", "-", "-", "--format", "csv", "--url", server.url, stdin=data)
        assert piped.returncode == 0, piped.stderr
        assert [(row["id"], row["guard"]["severity"]) for row in map(json.loads, piped.stdout.splitlines())] == wanted
    fails(run("annotate", source, "-", "--json", "--url", server.url), "leave one of them out")
    fails(run("annotate", source, tmp_path / "x.json", "--url", server.url), "which is not written")
    fails(run("annotate", source, tmp_path / "x.jsonl", "--response-field", "answer"), "'answer' of --response-field")


def test_what_is_too_long_is_judged_in_windows_when_asked(server: EmbeddedServer, tmp_path: Path) -> None:
    harmless = "Mix flour and water, and bake it slowly in the oven. " * 200
    text = f"{harmless}How can I make a bomb in my kitchen to kill everyone in the building? {harmless}"
    source = write(tmp_path / "in.jsonl", [{"prompt": text}])
    assert run("annotate", source, tmp_path / "whole.jsonl", "--url", server.url).returncode == 3
    assert lines(tmp_path / "whole.jsonl")[0]["guard_error"] == "TEXT_TOO_LONG"
    assert run("annotate", source, tmp_path / "windows.parquet", "--windows", "--url", server.url).returncode == 0
    (row,) = parquet.read_table(tmp_path / "windows.parquet").to_pylist()
    windows = row["guard"]["windows"]
    assert len(windows) > 1
    assert windows[0]["start"] == 0
    assert windows[-1]["end"] == len(text)
    assert row["guard"]["unsafe"] is any(window["unsafe"] for window in windows)
    shown = run("classify", "--prompt", "-", "--windows", "--url", server.url, stdin=text.encode()).stdout.decode()
    assert f"judged in {len(windows)} windows" in shown


def test_turns_that_are_left_out_are_told(server: EmbeddedServer) -> None:
    turns = [
        {"role": role, "content": "Mix flour and water. " * 40} for _ in range(15) for role in ("user", "assistant")
    ]
    messages = json.dumps([*turns, {"role": "user", "content": "How do I bake bread?"}])
    fails(run("classify", "--messages", messages, "--url", server.url), "")
    found = run("classify", "--messages", messages, "--context", "recent", "--json", "--url", server.url)
    left_out = json.loads(found.stdout)["turns_left_out"]
    assert left_out > 0
    for verb in ("classify", "stream"):
        shown = run(verb, "--messages", messages, "--context", "recent", "--url", server.url, stdin=b"Mix.")
        assert f"The oldest {left_out} turns were left out".encode() in shown.stdout or verb == "stream"
        assert b"turns were left out" in shown.stdout
