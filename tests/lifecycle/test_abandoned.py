"""Sessions that nobody ends: thousands of them, and what a server keeps of them."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from qwen3guard_client import AsyncGuardClient, GuardClient
from qwen3guard_contract import errors
from qwen3guard_server.processes import model_processes, resident_bytes
from qwen3guard_server.server import EmbeddedServer
from support.lengths import times
from support.processes import traces
from support.serving import serve, stream_repository, wait_ready

PROMPT = "How do I bake bread?"


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
def test_thousands_of_abandoned_sessions_leave_nothing(small: EmbeddedServer) -> None:
    async def abandon(guard: AsyncGuardClient, count: int) -> None:
        for _ in range(count):
            session = str(uuid.uuid4())
            while True:
                try:
                    await guard.stream_step(session, prompt=PROMPT, start=True)
                    break
                except errors.Overloaded:
                    await asyncio.sleep(0.01)

    async def all_of(count: int) -> None:
        async with AsyncGuardClient(small.url) as guard:
            await asyncio.gather(*(abandon(guard, count // 16) for _ in range(16)))

    with GuardClient(small.url) as guard:
        kept = str(uuid.uuid4())
        length = guard.stream_step(kept, prompt=PROMPT, start=True).length
    asyncio.run(all_of(times(400, 2000)))
    before, files = memory(small), set(traces(os.getpid()))
    asyncio.run(all_of(times(1600, 8000)))
    after = memory(small)
    for name, size in after.items():
        assert size - before[name] < times(8 << 20, 20 << 20), (name, before, after)
    assert set(traces(os.getpid())) == files
    with GuardClient(small.url) as guard, pytest.raises(errors.SessionLost):
        guard.stream_step(kept, text="more", position=length)
    time.sleep(5)  # longer than idle_s, and nobody asks anything
    assert memory(small)["stream_guard"] < after["stream_guard"]


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
