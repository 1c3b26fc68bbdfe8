"""Sessions that nobody ends, and what a server keeps of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import soak
from qwen3guard_client import GuardClient
from qwen3guard_server.processes import model_processes, resident_bytes
from qwen3guard_server.server import EmbeddedServer
from support.lengths import FULL, times
from support.processes import servers
from support.serving import serve, stream_repository, wait_ready

PROMPT = "How do I bake bread?"
WARMING_UP = 0.05
"""The most that a process may grow from the first quarter of a minute to the second."""


@pytest.fixture(scope="module")
def small(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A stream guard with little memory that forgets fast."""
    folder = stream_repository(
        repository, tmp_path_factory.mktemp("small") / "r", slots=32, idle_s=3, evict_s=0.02, kv_budget_bytes=200 << 20
    )
    with serve(folder) as server:
        wait_ready(server)
        yield server


def memory(server: EmbeddedServer) -> dict[str, int]:
    """Resident bytes of the server and its processes, by name."""
    processes = {"tritonserver": server.pid} | model_processes(server.pid)
    return {name: resident_bytes(pid) for name, pid in processes.items()}


@pytest.mark.trial
def test_nothing_is_left_of_streams_that_nobody_ends(repository: Path, tmp_path: Path) -> None:
    """The soak, with sessions that are forgotten after 3 s so that half a minute shows it."""
    folder = Path(shutil.copytree(repository, tmp_path / "r"))
    idle_s = soak.IDLE_S if FULL else 3
    others = servers(os.getpid())
    soak.forget_after(folder, idle_s)
    found = soak.soak(folder, minutes=10 if FULL else 0.5, idle_s=idle_s, streams=8, classifications=1)
    assert soak.failures(found, soak.FLAT if FULL else WARMING_UP) == [], found
    for name in ("streams", "streams abandoned", "classifications"):
        assert found["counts"][name] > 10, found
    assert servers(os.getpid()) == others


@pytest.mark.trial
def test_one_id_used_hundreds_of_times_grows_nothing(small: EmbeddedServer) -> None:
    with GuardClient(small.url) as guard:
        first = guard.stream_step(11, prompt=PROMPT, start=True)
        sizes = []
        last = times(400, 1000) - 1
        for number in range(last + 1):
            opened = guard.stream_step(11, prompt=PROMPT, start=True)
            assert opened == first
            step = guard.stream_step(11, text="Mix flour and water.", position=first.length)
            if number == 0:
                once = step
            assert step == once
            if number in (100, last):
                sizes.append(memory(small))
        guard.stream_step(11, position=once.length, end=True)
    for name in sizes[0]:
        assert sizes[1][name] - sizes[0][name] < 10 << 20
