"""trials/fleet.py in short: three real servers behind the shipped nginx configuration change under streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fleet
import pytest
import soak
from support.nginx import nginx

STREAMS = 16
MOVED_S = 30.0  # the longest that a change waits for the first stream that it moves


@pytest.fixture(scope="module")
def made(repository: Path, eight_bits: Path) -> dict[fleet.Export, Path]:
    nginx()  # without one there is nothing to export for
    return {"fp32": repository, "dq8r": eight_bits}


@pytest.fixture(scope="module")
def cases(made: dict[fleet.Export, Path]) -> list[fleet.Case]:
    return fleet.cases(made, fleet.everyday()[:4])


@pytest.fixture
def three(made: dict[fleet.Export, Path], tmp_path: Path) -> Iterator[fleet.Fleet]:
    with fleet.Fleet(tmp_path / "nginx", made, ("one", "two", "three")) as running:
        yield running


def test_the_exports_are_told_apart(cases: list[fleet.Case]) -> None:
    for case in cases:
        assert not soak.agree(case.streamed["dq8r"], case.streamed["fp32"])


@pytest.mark.trial
def test_no_verdict_is_wrong_and_no_stream_is_lost(three: fleet.Fleet, cases: list[fleet.Case]) -> None:
    """Scaled out, one replica restarted with another export, and one killed."""
    three.list(("one", "two"))
    crowd = fleet.Crowd(three.proxy.url, cases, STREAMS, pause_s=0.1)

    def until_one_moved(change: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            change()
            until = time.monotonic() + MOVED_S
            while not crowd.seen.moved and time.monotonic() < until:
                time.sleep(0.05)

        return run

    what = [
        ("out", until_one_moved(lambda: three.list(("one", "two", "three")))),
        ("another export", until_one_moved(lambda: three.restart("one", "dq8r"))),
        ("killed", until_one_moved(lambda: three.servers["two"].stop(kill=True))),
    ]
    rows = asyncio.run(crowd.during(what, seconds=0.5))
    assert fleet.bad(rows) == []
    assert sum(seen.streams["right"] for seen in rows) >= STREAMS
    assert all(seen.moved for seen in rows[1:]), [seen.row() for seen in rows]
