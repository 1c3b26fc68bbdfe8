"""Rows in flight, their output and its continuation, without a server."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qwen3guard_apps.annotation.flight import ROWS_A_CALL, Flight, in_order
from qwen3guard_apps.annotation.output import Output
from qwen3guard_apps.annotation.progress import Progress
from qwen3guard_apps.annotation.rows import DataRow, Fields
from qwen3guard_contract import errors


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
        self.most = self.active = self.refused = 0
        self.now = 0.0

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
