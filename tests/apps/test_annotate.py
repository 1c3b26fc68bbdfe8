"""annotate: every row once and in order, whatever kills it, whatever the row holds, and whatever the server refuses."""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from conftest import ROOT
from pyarrow import parquet
from qwen3guard_apps.annotation.flight import ROWS_A_CALL, Flight, in_order
from qwen3guard_apps.annotation.output import Output
from qwen3guard_apps.annotation.progress import Progress
from qwen3guard_apps.annotation.rows import DataRow, Fields, open_rows
from qwen3guard_client import GuardClient
from qwen3guard_contract import errors
from qwen3guard_server.server import EmbeddedServer
from test_serve import COMMAND, fails, run
from texts import TEXTS

PAIR = {"prompt": "How do I bake bread?", "response": "Mix flour and water."}
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
    rows = [
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
        assert set(kept) == {"severity", "categories", "refusal", "probabilities", "answer_status"} | decisions
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_bad_rows_keep_their_line_and_say_why_beside_it(server: EmbeddedServer, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    bad = [b"", b"{", b"[]", b'{"prompt": "\xff"}', b'{"prompt": ""}', b"{}", b'{"prompt": 5}', b"[" * 100_000]
    bad += [b'{"prompt": "\\ud800"}', b'{"messages": [{"role": "user"}]}', b'{"prompt": null, "x": 1}']
    bad.insert(0, b'{"messages": [{"role": "assistant", "content": "Sure.", "tool_calls": [{"a": 1}]}]}')
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
    assert "'tool_calls'" in reported[0]["error"]
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


@pytest.mark.parametrize("error_first", [True, False])
def test_wherever_the_output_is_cut_it_is_continued_to_the_same_bytes(tmp_path: Path, error_first: bool) -> None:
    """All cuts of the output; the errors file is as far as it was when that byte was written, or one line further."""
    rows = [DataRow(1, {"a": "é\n"}), DataRow(2, None), DataRow(3, {}), DataRow(4, {"b": 1})]
    results: list[Any] = [{"x": 1}, errors.InvalidRequest("No JSON."), errors.EmptyText("Empty."), {"x": "ü"}]
    path = tmp_path / "out.jsonl"

    def go_on() -> int:
        source = iter(rows)
        with Output(path, "guard") as output:
            done = output.resume(source)
            for row, found in zip(source, results[done:], strict=True):
                output.write(row, found)
            return done

    assert go_on() == 0
    whole, whole_errors = path.read_bytes(), (tmp_path / "out.errors.jsonl").read_bytes()
    error_lines = whole_errors.splitlines(keepends=True)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        done = whole[:cut].count(b"\n")
        kept = b"".join(error_lines[: sum(number <= done for number in (2, 3))])
        torn = whole_errors[len(kept) :][: random.Random(cut).randint(0, 30)] if error_first else b""
        (tmp_path / "out.errors.jsonl").write_bytes(kept + torn)
        assert go_on() == done
        assert path.read_bytes() == whole
        assert (tmp_path / "out.errors.jsonl").read_bytes() == whole_errors


def test_another_input_other_fields_and_a_second_run_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Output(path, "guard") as output:
        output.write(DataRow(1, {"a": 1}), {"x": 1})
        with pytest.raises(errors.InvalidRequest, match="Another run"), Output(path, "guard"):
            pass
        with pytest.raises(errors.InvalidRequest, match="'guard' already"):
            output.write(DataRow(2, {"guard": 1}), {})
    before = path.read_bytes()
    for rows, field in (([DataRow(1, {"a": 2})], "guard"), ([], "guard"), ([DataRow(1, {"a": 1})], "other")):
        with Output(path, field) as output, pytest.raises(errors.InvalidRequest, match="does not continue"):
            output.resume(iter(rows))
    assert path.read_bytes() == before


def test_parquet_json_and_a_data_set_give_the_same_rows(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": number, "prompt": text, "response": None} for number, text in enumerate(TEXTS)]
    write(tmp_path / "rows.jsonl", rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    monkeypatch.setattr("qwen3guard_apps.annotation.rows.PARQUET_ROWS", 3)
    folder = tmp_path / "set"
    folder.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-0.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for source in (tmp_path / "rows.jsonl", tmp_path / "rows.parquet", folder):
        found = open_rows(str(source), "train")
        assert found.total == len(rows)
        assert [(row.number, row.record) for row in found.read()] == list(enumerate(rows, start=1))
    outputs = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for source, out in zip(("rows.jsonl", "rows.parquet"), outputs, strict=True):
        assert run("annotate", tmp_path / source, out, "--url", server.url).returncode == 0
    decided = [[(row["id"], row["guard"]["severity"]) for row in lines(out)] for out in outputs]
    assert decided[0] == decided[1]


def test_sources_that_are_none_and_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(run("annotate", tmp_path / "none.jsonl", tmp_path / "out.jsonl"), "is no file")
    broken = tmp_path / "x.parquet"
    broken.write_bytes(b"no")
    fails(run("annotate", broken, tmp_path / "out.jsonl"), "cannot be read as Parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.InvalidRequest, match="no data set"):
        open_rows(str(tmp_path / "empty"), "train")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(errors.ServeError, match=r"qwen3guard-triton\[data\]"):
        open_rows("some/set", "train")


def test_no_server_is_said_at_once_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    fails(run("annotate", write(tmp_path / "in.jsonl", [PAIR]), out, "--url", "127.0.0.1:9"), "cannot be reached")
    assert out.read_bytes() == b""
    fails(run("annotate", tmp_path / "in.jsonl", out, "--in-flight", "0"), "1 or more")
    fails(run("annotate", tmp_path / "in.jsonl", tmp_path / "no" / "out.jsonl"), "cannot be written")


def test_which_fields_make_the_conversation() -> None:
    row = {"q": "Hi.", "a": "Hello.", "prompt": "No."}
    assert Fields("q", "a").conversation(row) == ("Hi.", "Hello.", None)
    assert Fields("q", "a", prompts_only=True).conversation(row) == ("Hi.", None, None)
    assert Fields().conversation({"messages": [], "prompt": "x"}) == (None, None, [])
    with pytest.raises(errors.InvalidRequest, match="'prompt' nor a field 'messages'"):
        Fields().conversation({"text": "x"})


class Server:
    """Takes `room` calls at once and refuses the others; time passes only while somebody sleeps."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.most = self.active = self.now = self.refused = 0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    async def answer(self, number: int) -> int:
        if self.active >= self.room:
            self.refused += 1
            raise errors.Overloaded("Full.")
        self.active += 1
        self.most = max(self.most, self.active)
        for _ in range(number % 5 + 1):
            await asyncio.sleep(0)
        self.active -= 1
        return number


def fly(server: Server, count: int, ask: Callable[[int], Any] | None = None, **how: Any) -> list[tuple[int, int]]:
    landed: list[tuple[int, int]] = []
    ask = ask or server.answer

    async def all_of_them() -> None:
        flight = Flight(**{"in_flight": 32, **how}, clock=lambda: server.now, sleep=server.sleep)
        await in_order(
            range(count),
            lambda n: flight.call(lambda: ask(n)),
            lambda n, found: landed.append((n, found)),
            flight.in_flight,
        )

    asyncio.run(all_of_them())
    return landed


@pytest.mark.parametrize("room", [1, 3, 16, 100])
def test_a_server_that_refuses_gets_every_row_in_the_end_and_is_kept_full(room: int) -> None:
    server = Server(room)
    assert fly(server, 500) == [(number, number) for number in range(500)]
    assert server.most == min(room, 32)
    assert server.refused < 500


def test_rows_held_while_one_is_slow_are_bounded() -> None:
    begun: list[int] = []

    async def ask(number: int) -> int:
        begun.append(number)
        while number == 0 and len(begun) < ROWS_A_CALL * 4:
            await asyncio.sleep(0)
        if number == 0:
            for _ in range(1000):
                await asyncio.sleep(0)
            assert len(begun) == ROWS_A_CALL * 4
        return number

    assert len(fly(Server(99), 100, ask, in_flight=4)) == 100


def test_patience_ends_with_a_server_that_is_gone() -> None:
    server = Server(99)

    async def ask(number: int) -> int:
        if number == 7:
            raise errors.Unreachable("Gone.")
        return number

    with pytest.raises(errors.Unreachable):
        fly(server, 20, ask, patience_s=60.0)
    assert server.now > 60

    async def never(_: int) -> int:
        raise errors.Unreachable("Gone.")

    server.now = 0
    with pytest.raises(errors.Unreachable):
        fly(server, 20, never)
    assert server.now == 0


def test_a_failure_of_the_server_at_one_row_is_tried_again_and_then_the_rows() -> None:
    tries: list[int] = []

    async def ask(number: int) -> int:
        tries.append(number)
        if number == 3 and tries.count(3) < 3:
            raise errors.InternalError("Failed.")
        if number == 5:
            raise errors.InternalError("Failed.")
        return number

    with pytest.raises(errors.InternalError):
        fly(Server(99), 10, ask, in_flight=1)
    assert tries == [0, 1, 2, 3, 3, 3, 4, 5, 5, 5, 5]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_tells_rate_and_time_left_on_a_terminal_alone() -> None:
    now = [0.0]
    screen, file = Screen(), io.StringIO()
    for out in (screen, file):
        now[0] = 0.0
        progress = Progress(1000, 100, out, clock=lambda: now[0])
        for _ in range(50):
            now[0] += 0.5
            progress.step(bad=2)
    assert screen.getvalue().endswith("150 of 1,000 rows (15%), 2.0 rows/s, 7:05 left, 2 bad")
    assert file.getvalue() == ""


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
