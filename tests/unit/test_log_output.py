"""The log's own thread: whoever writes never waits, and what is dropped is counted and told."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from qwen3guard_contract.log_output import LONGEST_LINE, MOST_BYTES, LogOutput, line

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
