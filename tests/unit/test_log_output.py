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
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe's ends, to read and to write. The test may close either of them."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            try:
                os.close(end)
            except OSError:
                continue


def read_all(reader: int) -> list[str]:
    """What is in a pipe that nobody writes to any more."""
    with os.fdopen(os.dup(reader), encoding="utf-8", errors="replace") as file:
        return file.read().splitlines()


def test_lines_come_out_whole_and_in_order() -> None:
    with pipe() as (reader, writer):
        output = LogOutput(writer)
        expected = [f"line {number}" for number in range(500)]
        for text in expected:
            output.write(f"{text}\n")
        output.close(PATIENCE_S)
        os.close(writer)
        assert read_all(reader) == expected
        assert output.dropped == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stalls_costs_lines_and_no_time(blocking: bool) -> None:
    """The test would never end if `write` waited: nobody reads until all is written."""
    with pipe() as (reader, writer):
        os.set_blocking(writer, blocking)
        output = LogOutput(writer, as_json=True)
        for number in range(2 * MOST_BYTES // 20 + 10_000):
            output.write(f"{number:019d}\n")
        assert output.dropped > 0
        lost = output.dropped
        found: list[str] = []
        rest = b""
        while not any('"log_dropped"' in each for each in found):
            rest += os.read(reader, 1 << 16)
            *whole, rest = rest.split(b"\n")
            found += [each.decode() for each in whole]
            if not rest and not found[-1].startswith("{"):
                output.write("again\n")
        told = next(json.loads(each) for each in found if each.startswith("{"))
        assert told["lines"] == lost
        os.close(writer)


def test_a_reader_that_has_gone_is_an_error_for_nobody() -> None:
    with pipe() as (reader, writer):
        os.close(reader)
        output = LogOutput(writer)
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
    with pipe() as (reader, writer):
        output = LogOutput(writer)
        output.write("é" * LONGEST_LINE + "\n")
        output.write("next\n")
        output.close(PATIENCE_S)
        os.close(writer)
        first, second = read_all(reader)
        assert (len(first.encode()) <= LONGEST_LINE, second) == (True, "next")


def test_after_the_end_nothing_is_taken() -> None:
    with pipe() as (_, writer):
        output = LogOutput(writer)
        output.close(PATIENCE_S)
        output.write("late\n")
        assert output.dropped == 1


def test_a_line_is_json_with_its_time_and_without_what_is_not_known() -> None:
    found = json.loads(line("info", "ready", url="127.0.0.1:1", token=None))
    assert list(found) == ["time", "level", "event", "url"]
    assert found["time"].endswith("Z")
