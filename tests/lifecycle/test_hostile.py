"""Hostile requests that a server is started for: what they leave behind, and what kills it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from qwen3guard_client import GuardClient
from qwen3guard_contract import errors, wire
from qwen3guard_server.server import EmbeddedServer
from support.hostile import ATTEMPT_S, CASES, Wire, good, mutants, put, replace, well
from support.lengths import FULL
from support.serving import serve, wait_ready

LARGE = 100_000_000
LET_GO_S = 0.5


def test_a_client_that_hangs_up_leaves_nothing_behind(spare: EmbeddedServer) -> None:
    """Requests cancelled on their way, and streams closed in the middle.

    Triton 24.10 may crash or hang of it (its issues 7368 and 8034); then the next server is well.
    """
    with Wire(spare.url) as opened, contextlib.suppress(grpc.RpcError):
        for number in range(300):
            CASES["cancelled"] += 1
            call = opened.stub.ModelInfer.future(good(wire.MODELS[number % len(wire.MODELS)]), timeout=ATTEMPT_S)
            time.sleep(number % 10 * 1e-4)
            call.cancel()
        for model in wire.MODELS:
            CASES["cancelled"] += 50
            stream = opened.stub.ModelStreamInfer(iter([good(model) for _ in range(50)]), timeout=ATTEMPT_S)
            next(stream)
            stream.cancel()
    time.sleep(LET_GO_S)
    with GuardClient(spare.url, timeout_s=ATTEMPT_S / 2, wait_for_server=False) as client:
        try:
            well(spare, client)
        except (AssertionError, errors.Unreachable, errors.DeadlineExceeded):
            assert "2.51.0" in spare.log
            spare.restart()
            wait_ready(spare)


@pytest.fixture(scope="module")
def spare(repository: Path) -> Iterator[EmbeddedServer]:
    """A server whose memory nobody else uses."""
    with serve(repository) as running:
        wait_ready(running)
        yield running


def stub_bytes(server: EmbeddedServer) -> dict[int, int]:
    """The private memory of each process behind a model, by its id."""
    children = [
        int(pid) for path in Path(f"/proc/{server.pid}/task").glob("*/children") for pid in path.read_text().split()
    ]
    status = {pid: Path(f"/proc/{pid}/status").read_text() for pid in children}
    return {pid: 1024 * int(text.partition("RssAnon:")[2].split()[0]) for pid, text in status.items()}


def shared_bytes(server: EmbeddedServer) -> int:
    return sum(region.stat().st_blocks * 512 for region in Path("/dev/shm").glob(f"*{server._prepared().tag}*"))


def growth(server: EmbeddedServer, load: Callable[[], object]) -> tuple[int, int]:
    """What `load` adds to the process that grows most, and to the shared memory, after it ran once.

    The thread that answers lets go of a request a moment after the answer was sent.
    """
    load()
    time.sleep(LET_GO_S)
    stubs, shared = stub_bytes(server), shared_bytes(server)
    load()
    load()
    time.sleep(LET_GO_S)
    after = stub_bytes(server)
    assert after.keys() == stubs.keys()
    return max(after[pid] - stubs[pid] for pid in stubs), shared_bytes(server) - shared


def test_memory_does_not_grow_with_refused_requests(spare: EmbeddedServer) -> None:
    with Wire(spare.url) as opened:

        def load() -> None:
            for request in mutants(500, seed=11):
                opened.send(request, "mutants for memory")

        stub, shared = growth(spare, load)
    print(f"\nafter 1000 more mutants: {stub} bytes more in a process, {shared} in shared memory")
    assert stub < 8 << 20
    assert shared == 0


LARGE_INPUTS = {
    "a prompt": (wire.CLASSIFY, wire.PROMPT, b"word " * (LARGE // 5)),
    "special tokens": (wire.STREAM_STEP, wire.PROMPT, b"<think>" * (LARGE // 7)),
    "a response": (wire.CLASSIFY, wire.RESPONSE, b"word " * (LARGE // 5)),
    "messages": (wire.CLASSIFY, wire.MESSAGES, b"[" + b"{}," * (LARGE // 3) + b"{}]"),
    "a text": (wire.STREAM_STEP, wire.TEXT, b"x" * LARGE),
    "a category": (wire.STREAM_STEP, wire.BLOCKED, b"x" * LARGE),
    "ids": (wire.STREAM_GUARD, wire.INPUT_IDS, bytes(LARGE)),
}


@pytest.mark.trial
@pytest.mark.parametrize("name", LARGE_INPUTS if FULL else ["messages", "ids"])
def test_a_hundred_megabytes_are_refused_and_leave_nothing_behind(name: str, spare: EmbeddedServer) -> None:
    """Shared memory keeps the size of the largest request, once for each model; nothing keeps the text."""
    model, tensor, data = LARGE_INPUTS[name]
    request = good(model)
    replace(request, tensor.name, data, alone=tensor is wire.MESSAGES)
    if tensor.dtype == "INT64":
        request.inputs[-1].datatype = "INT64"
        request.inputs[-1].shape[:] = [1, len(data) // 8]
        request.raw_input_contents[-1] = data
    with Wire(spare.url) as opened:
        stub, shared = growth(spare, lambda: opened.send(request, "of 100 MB"))
    print(f"\n{name}: {stub} bytes more in a process, {shared} in shared memory")
    assert stub < LARGE // 4
    assert shared < LARGE // 4
    with GuardClient(spare.url, timeout_s=ATTEMPT_S) as client:
        well(spare, client)


def test_what_kills_this_triton_is_noticed_and_it_starts_again(repository: Path) -> None:
    """Triton 24.10 divides by zero where classes of a BYTES output are asked for; later ones refuse that."""
    request = good(wire.CLASSIFY)
    put(request.outputs.add(name=wire.ANSWER.name), {"classification": 1})
    with serve(repository) as server:
        wait_ready(server)
        with Wire(server.url) as opened, pytest.raises(grpc.RpcError) as found:
            opened.stub.ModelInfer(request, timeout=ATTEMPT_S)
        if found.value.code() is not grpc.StatusCode.INVALID_ARGUMENT:
            deadline = time.monotonic() + ATTEMPT_S
            while not server.fault() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert "was killed by SIGFPE" in str(server.fault())
            server.restart()
            wait_ready(server)
        assert server.fault() is None
