"""The log's own thread: whoever writes never waits, and what is dropped is counted and told."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from qwen3guard_contract.log_output import LONGEST_LINE, MOST_BYTES, LogOutput, RotatedLog, line

PATIENCE_S = 30.0


@contextmanager
def to_pipe(*, as_json: bool = False, blocking: bool = True) -> Iterator[tuple[LogOutput, int]]:
    """An output, and the end of its pipe to read from. The thread ends before the number of its descriptor is free."""
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    output = LogOutput(writer, as_json=as_json)
    try:
        yield output, reader
    finally:
        os.close(reader)
        output.close(PATIENCE_S)
        os.close(writer)


def lines_of(output: LogOutput, reader: int) -> list[str]:
    output.close(PATIENCE_S)
    return os.read(reader, 1 << 16).decode().splitlines()


def test_lines_come_out_whole_and_in_order() -> None:
    with to_pipe() as (output, reader):
        expected = [f"line {number}" for number in range(500)]
        for text in expected:
            output.write(f"{text}\n")
        assert lines_of(output, reader) == expected
        assert output.dropped == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stalls_costs_lines_and_no_time(blocking: bool) -> None:
    """The test would never end if `write` waited: nobody reads until all is written."""
    with to_pipe(as_json=True, blocking=blocking) as (output, reader):
        for number in range(2 * MOST_BYTES // 20 + 10_000):
            output.write(f"{number:019d}\n")
        assert output.dropped > 0
        told, rest = 0, b""
        while told < output.dropped:
            rest += os.read(reader, 1 << 16)
            *whole, rest = rest.split(b"\n")
            told += sum(json.loads(each)["lines"] for each in whole if each.startswith(b"{"))
            output.write("again\n")
        assert told == output.dropped


def test_a_reader_that_has_gone_is_an_error_for_nobody() -> None:
    with to_pipe() as (output, reader):
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, reader)  # closes the end of the pipe, and keeps its number taken
        os.close(nowhere)
        handler = logging.StreamHandler(output)
        handler.emit(logging.makeLogRecord({"msg": "nobody reads this"}))
        output.close(PATIENCE_S)
        assert output.dropped == 1


def test_a_full_disk_is_an_error_for_nobody() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    output = LogOutput(descriptor)
    for _ in range(3):
        output.write("no space\n")
    output.close(PATIENCE_S)
    os.close(descriptor)
    assert output.dropped == 3


def test_a_log_file_is_rotated_and_never_longer_than_it_may_be(tmp_path: Path) -> None:
    log = RotatedLog(tmp_path / "log", most_bytes=100, kept=2)
    for number in range(50):
        log.write(f"line {number:04d}\n")
    log.close(PATIENCE_S)
    files = [tmp_path / name for name in ("log.2", "log.1", "log")]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(80 < file.stat().st_size <= 100 for file in files)
    found = "".join(file.read_text() for file in files).splitlines()
    assert found == [f"line {number:04d}" for number in range(50 - len(found), 50)]
    assert log.dropped == 0


def test_a_log_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    log = RotatedLog(tmp_path / "log")
    log.write("before\n")
    while not (tmp_path / "log").stat().st_size:
        time.sleep(0.001)
    (tmp_path / "log").unlink()
    log.write("after\n")
    log.close(PATIENCE_S)
    assert (tmp_path / "log").read_text() == "after\n"


def test_a_log_file_that_somebody_renamed_is_made_again_also_where_another_takes_its_place(tmp_path: Path) -> None:
    path, texts = tmp_path / "log", ["one\n", "two\n", "three\n"]
    log = RotatedLog(path)
    for number, text in enumerate(texts):
        log.write(text)
        deadline = time.monotonic() + PATIENCE_S
        while not path.exists() or path.stat().st_size < len(text):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        path.rename(tmp_path / f"kept-{number}")
        if number == 1:
            path.touch()
    log.close(PATIENCE_S)
    assert [(tmp_path / f"kept-{number}").read_text() for number in range(3)] == texts
    assert log.dropped == 0


def test_a_log_file_is_for_its_owner_alone_and_is_gone_on_with(tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        log = RotatedLog(tmp_path / "log")
        log.write(text)
        log.close(PATIENCE_S)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_log_file_that_cannot_be_made_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RotatedLog(tmp_path / "nowhere" / "log")


def test_a_log_behind_a_link_is_rotated_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "log")
    log = RotatedLog(tmp_path / "link", most_bytes=10)
    for number in range(3):
        log.write(f"line {number}\n")
    log.close(PATIENCE_S)
    assert (tmp_path / "link").is_symlink()
    assert [(tmp_path / name).read_text() for name in ("log.2", "log.1", "log")] == ["line 0\n", "line 1\n", "line 2\n"]


def test_a_log_whose_folder_takes_no_other_file_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "replace", refuse)
    log = RotatedLog(tmp_path / "log", most_bytes=20)
    for number in range(5):
        log.write(f"line {number}\n")
    log.close(PATIENCE_S)
    assert (tmp_path / "log").read_text() == "line 4\n"
    assert log.dropped == 0


def test_a_pipe_is_no_file_to_be_renamed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError, match="No such device"):  # nobody reads it
        RotatedLog(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    log = RotatedLog(tmp_path / "log", most_bytes=10)
    for number in range(5):
        log.write(f"line {number}\n")
    log.close(PATIENCE_S)
    assert os.read(reader, 1000).decode().splitlines() == [f"line {number}" for number in range(5)]
    os.close(reader)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_folder_of_the_log_that_goes_away_costs_lines_alone(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = RotatedLog(tmp_path / "logs" / "log", most_bytes=10)
    (tmp_path / "logs" / "log").unlink()
    (tmp_path / "logs").rmdir()
    log.write("lost\n")
    while not log.dropped:
        time.sleep(0.001)
    (tmp_path / "logs").mkdir()
    log.write("found\n")
    log.close(PATIENCE_S)
    assert (tmp_path / "logs" / "log").read_text().endswith("found\n")


def test_a_long_line_is_cut_and_stays_one_line() -> None:
    with to_pipe() as (output, reader):
        output.write("é" * LONGEST_LINE + "\n")
        output.write("next\n")
        first, second = lines_of(output, reader)
        assert (len(first.encode()) < LONGEST_LINE, second) == (True, "next")


def test_after_the_end_nothing_is_taken() -> None:
    with to_pipe() as (output, _):
        output.close(PATIENCE_S)
        output.write("late\n")
        assert output.dropped == 1


def test_a_line_is_json_with_its_time_and_without_what_is_not_known() -> None:
    found = json.loads(line("info", "ready", url="127.0.0.1:1", token=None))
    assert list(found) == ["time", "level", "event", "url"]
    assert found["time"].endswith("Z")


def test_a_file_that_is_this_process_s_own_standard_output() -> None:
    program = (
        "from pathlib import Path\n"
        "from qwen3guard_contract.log_output import RotatedLog\n"
        "log = RotatedLog(Path('/dev/stdout')); log.write('one'); log.close()"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("one", "", 0)
