"""A stream guard whose memory is full: what may take the place of a stream, and what may not."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from qwen3guard_client import GuardClient, StepResult
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import errors, wire
from qwen3guard_contract.errors import GuardError
from qwen3guard_contract.manifest import Manifest
from qwen3guard_runtime.engine.kv_cache import KVCache
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer
from support.serving import serve, stream_repository, wait_ready
from tritonclient.grpc import model_config_pb2

PROMPT = "How do I bake bread?"
STREAMS = 6
"""As many short streams as the smallest memory holds."""
EVICT_S = 0.05


@pytest.fixture(scope="module")
def small(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A stream guard with the least memory that it can have."""
    least = KVCache.least_bytes(Manifest.read(repository / "stream_guard" / "1"))
    folder = tmp_path_factory.mktemp("least") / "r"
    with serve(stream_repository(repository, folder, kv_budget_bytes=least, evict_s=EVICT_S)) as server:
        wait_ready(server)
        yield server


@pytest.fixture
def client(small: EmbeddedServer) -> Iterator[GuardClient]:
    with GuardClient(small.url) as opened:
        yield opened


@pytest.fixture
def streams(client: GuardClient) -> Iterator[dict[str, StepResult]]:
    """The memory is full of them, and each is idle for long enough to be forgotten."""
    opened = {name: client.stream_step(name, prompt=PROMPT, start=True) for name in fresh(STREAMS)}
    time.sleep(EVICT_S)
    yield opened
    for name in opened:
        with contextlib.suppress(errors.SessionLost):
            client.stream_step(name, token_ids=[], end=True)


def fresh(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


def goes_on(client: GuardClient, name: str, opened: StepResult) -> bool:
    try:
        return client.stream_step(name, text="Mix flour", position=opened.length).length > opened.length
    except errors.SessionLost:
        return False


def test_the_canary_takes_nobodys_place(
    small: EmbeddedServer, client: GuardClient, streams: dict[str, StepResult]
) -> None:
    call = canary.canary_call(small.manifests["stream_step"])
    for name in fresh(3):
        with pytest.raises(errors.Overloaded):
            client.send(Call(call.model, call.values, call.outputs, call.read, name, True, True, True))
    assert [goes_on(client, name, opened) for name, opened in streams.items()] == [True] * STREAMS
    time.sleep(EVICT_S)
    client.stream_step(fresh(1)[0], prompt=PROMPT, start=True, end=True)  # a user's does
    assert [goes_on(client, name, opened) for name, opened in streams.items()].count(False) == 1


def room_for_one(client: GuardClient, streams: dict[str, StepResult], ended: str) -> None:
    """Checks that `ended` is gone: if it were not, a new stream would take the place of one that is idle for longer."""
    [newcomer] = fresh(1)
    opened = client.stream_step(newcomer, prompt=PROMPT, start=True)
    assert all(goes_on(client, name, streams[name]) for name in streams if name != ended)
    assert goes_on(client, newcomer, opened)
    client.stream_step(newcomer, token_ids=[], end=True)
    with pytest.raises(errors.SessionLost):
        client.stream_step(ended, text="Mix", position=streams[ended].length)


def text(value: bytes, **others: Any) -> dict[wire.Tensor, Any]:
    return {wire.TEXT: [value], wire.POSITION: [0]} | {getattr(wire, name): other for name, other in others.items()}


ENDS: dict[str, tuple[wire.Model, dict[wire.Tensor, Any], type[GuardError]]] = {
    "text that is not UTF-8": (wire.STREAM_STEP, text(b"\xff"), errors.InvalidEncoding),
    "text beyond the context": (wire.STREAM_STEP, text(b"word " * 50_000), errors.TextTooLong),
    "text and token ids": (wire.STREAM_STEP, text(b"x", TOKEN_IDS=[1]), errors.InvalidRequest),
    "a conversation": (wire.STREAM_STEP, text(b"x", MESSAGES=[b"[]"]), errors.InvalidRequest),
    "a next turn before the response": (wire.STREAM_STEP, text(b"x", PROMPT=[b"Hi."]), errors.PositionOutOfRange),
    "a policy": (wire.STREAM_STEP, text(b"x", DEBOUNCE=[3]), errors.InvalidRequest),
    "a policy that cannot be read": (wire.STREAM_STEP, text(b"x", BLOCKED=[b"{}"]), errors.InvalidRequest),
    "a position in the conversation": (wire.STREAM_STEP, text(b"x"), errors.PositionOutOfRange),
    "a position beyond the end": (wire.STREAM_STEP, text(b"x") | {wire.POSITION: [999]}, errors.PositionOutOfRange),
    "unknown token ids": (wire.STREAM_STEP, {wire.TOKEN_IDS: [10**9], wire.POSITION: [0]}, errors.TokenOutOfRange),
    "unknown input ids": (wire.STREAM_GUARD, {wire.INPUT_IDS: [10**9], wire.POSITION: [0]}, errors.TokenOutOfRange),
}


@pytest.mark.parametrize("name", ENDS)
def test_end_frees_the_memory_whatever_else_is_wrong(
    client: GuardClient, streams: dict[str, StepResult], name: str
) -> None:
    model, values, expected = ENDS[name]
    ended, output = list(streams)[-1], model.outputs[0]
    with pytest.raises(GuardError) as found:
        client.send(Call(model, values, (output,), lambda reply: reply(output), ended, end=True))
    assert type(found.value) is expected
    room_for_one(client, streams, ended)


def test_an_export_of_before_answers_as_it_did(repository: Path, tmp_path: Path) -> None:
    """Without the tensor that hands an error on to the guard."""
    folder = stream_repository(repository, tmp_path / "r")
    for path in folder.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        for tensors in (config.input, config.output):
            kept = [tensor for tensor in tensors if tensor.name != wire.STEP_ERROR.name]
            del tensors[:]
            tensors.extend(kept)
        for step in config.ensemble_scheduling.step:
            step.input_map.pop(wire.STEP_ERROR.name, None)
            step.output_map.pop(wire.STEP_ERROR.name, None)
        path.write_text(text_format.MessageToString(config))
    with serve(folder) as server:
        wait_ready(server)
        with GuardClient(server.url) as guard:
            [name] = fresh(1)
            opened = guard.stream_step(name, prompt=PROMPT, start=True)
            assert goes_on(guard, name, opened)
            call = Call(
                wire.STREAM_STEP, text(b"\xff"), (wire.LENGTH,), lambda reply: reply(wire.LENGTH), name, end=True
            )
            with pytest.raises(errors.InvalidEncoding):
                guard.send(call)
            guard.stream_step(name, text="", position=opened.length, end=True)
