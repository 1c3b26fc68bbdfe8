"""A server's log: its writers never wait, and this process keeps a bounded part of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial

import pytest
from qwen3guard_server.server_log import KEPT_BYTES, PIPE_BYTES, ServerLog

PATIENCE_S = 30.0


class Writer:
    """A log, and an end of its pipe to write to."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.log = ServerLog(self.events.append)
        self.end = os.dup(self.log.descriptor)

    def write(self, text: str) -> int:
        return os.write(self.end, text.encode())


@pytest.fixture
def writer() -> Iterator[Writer]:
    made = Writer()
    yield made
    os.close(made.end)
    if made.log._thread.ident is None:
        made.log.follow()
    made.log._thread.join(PATIENCE_S)


def test_nobody_waits_for_a_log_that_is_not_read(writer: Writer) -> None:
    sizes = iter(partial(writer.write, "x" * 999 + "\n"), None)
    with pytest.raises(BlockingIOError):
        sum(sizes)
    os.set_blocking(writer.log._reader, False)
    assert len(os.read(writer.log._reader, 1 << 20)) > 60_000


def test_only_the_end_of_a_long_log_is_kept(writer: Writer) -> None:
    writer.log.follow()
    for number in range(3 * KEPT_BYTES // 100):
        writer.write(f"{number:098d}\n")
        if number % 500 == 0:
            writer.log.text  # noqa: B018 (reads what there is, so that the pipe has room)
    lines = writer.log.text.splitlines()
    assert KEPT_BYTES // 2 < sum(map(len, lines)) <= KEPT_BYTES
    assert int(lines[-1]) == 3 * KEPT_BYTES // 100 - 1


def test_lines_of_json_are_passed_on_whole_and_once(writer: Writer) -> None:
    writer.log.follow()
    for part in ('{"event": ', '"a"}\nplain\n{"event"', ': "b"}\n', "{"):
        writer.write(part)
        assert writer.log.text.endswith(part.rpartition("\n")[2])
    assert writer.events == ['{"event": "a"}', '{"event": "b"}']


def test_the_text_has_all_that_was_written_before(writer: Writer) -> None:
    """Also what no thread has read yet."""
    for number in range(100):
        writer.write(f"line {number}\n")
        assert writer.log.text.endswith(f"line {number}\n")


def test_a_log_without_end_keeps_nobody_waiting(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for it gets what the pipe can hold, and does not wait for a pause in it."""
    reads = 0

    def endless(*_: object) -> bytes:
        nonlocal reads
        reads += 1
        if reads > 10_000:
            raise BlockingIOError
        return b"x" * 999 + b"\n"

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", endless)
        assert writer.log.text
    assert reads <= PIPE_BYTES / 1000 + 1


def test_reading_ends_with_the_last_writer() -> None:
    before = threading.active_count()
    made = Writer()
    made.log.follow()
    made.write("last words")
    os.close(made.end)
    made.log._thread.join(PATIENCE_S)
    assert (made.log.text, threading.active_count()) == ("last words", before)
