"""Triton follows only so many sequences, and a START beyond them waits without an answer."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from qwen3guard_client import AsyncGuardClient, GuardClient, Policy
from qwen3guard_client.transport import calls, failures
from qwen3guard_contract import errors
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer
from support.serving import serve, stream_repository, wait_ready
from tritonclient.utils import InferenceServerException

PROMPT = "How do I bake bread?"
SEQUENCES = 8


@pytest.fixture
def few(repository: Path, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server with room for one stream, whose Triton follows SEQUENCES of them and the canary's."""
    config = stream_repository(repository, tmp_path / "r", slots=1) / "stream_guard" / "config.pbtxt"
    text, found = re.subn(
        r"max_candidate_sequences: \d+", f"max_candidate_sequences: {SEQUENCES + 1}", config.read_text()
    )
    assert found == 1
    config.write_text(text)
    with serve(tmp_path / "r") as server:
        wait_ready(server)
        yield server


def test_the_canary_has_a_place_where_newcomers_wait_for_one(few: EmbeddedServer) -> None:
    with GuardClient(few.url, timeout_s=1) as client:
        opened = client.stream_step(str(uuid.uuid4()), prompt=PROMPT, start=True)
        for _ in range(SEQUENCES - 1):
            with pytest.raises(errors.Overloaded):
                client.stream_step(str(uuid.uuid4()), prompt=PROMPT, start=True)
        with pytest.raises(errors.DeadlineExceeded):
            client.stream_step(str(uuid.uuid4()), prompt=PROMPT, start=True)
        for _ in range(3):
            with pytest.raises(errors.Overloaded):  # a sign of life
                canary.check(client, few.manifests, 5)
        assert opened.length


def test_a_start_whose_time_runs_out_while_it_waits_is_late(few: EmbeddedServer) -> None:
    """Triton answers it with the status of a server that cannot be reached."""

    def opening(timeout_s: float = 5) -> dict[str, Any]:
        return calls.stream_step(str(uuid.uuid4()), prompt=PROMPT, start=True).arguments(timeout_s)

    with triton.InferenceServerClient(few.url) as client:
        client.infer(**opening())
        for _ in range(SEQUENCES - 1):
            with pytest.raises(InferenceServerException) as refused:
                client.infer(**opening())
            assert isinstance(failures.error_of(refused.value), errors.Overloaded)
        with pytest.raises(InferenceServerException) as late:
            client.infer(**opening(1) | {"client_timeout": 20})
        assert "UNAVAILABLE" in late.value.status()
        assert isinstance(failures.error_of(late.value), errors.DeadlineExceeded)


def test_a_stream_of_the_client_that_is_refused_keeps_no_sequence(few: EmbeddedServer) -> None:
    def refused(open_stream: Callable[[GuardClient], object], error: type[errors.GuardError]) -> None:
        for _ in range(2 * SEQUENCES):
            with GuardClient(few.url, timeout_s=5) as client, pytest.raises(error):
                open_stream(client)

    refused(lambda client: client.stream(PROMPT, policy=Policy(debounce=2**20)).__enter__(), errors.InvalidRequest)
    with GuardClient(few.url) as client, client.stream(PROMPT):
        refused(lambda client: client.stream(PROMPT).__enter__(), errors.Overloaded)


def test_nor_does_one_of_the_async_client(few: EmbeddedServer) -> None:
    async def refused() -> None:
        async with AsyncGuardClient(few.url, timeout_s=5) as client, client.stream(PROMPT):
            for _ in range(2 * SEQUENCES):
                with pytest.raises(errors.Overloaded):
                    await client.stream(PROMPT).__aenter__()

    asyncio.run(refused())
