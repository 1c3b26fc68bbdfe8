"""A client that sends whatever protobuf can say: it gets a sentence, and the server answers everybody as before.

The cases are counted and printed (pytest -s).
"""

from __future__ import annotations

import random
import re
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from qwen3guard_client import GuardClient
from qwen3guard_contract import errors, wire
from qwen3guard_contract.parameters import STREAM_PARAMETERS
from qwen3guard_server.server import EmbeddedServer
from support.hostile import (
    ATTEMPT_S,
    CASES,
    CLASSES,
    MUTANTS,
    SECRET,
    Wire,
    dtypes,
    good,
    hostile,
    integers,
    mutants,
    put,
    sizes,
    strings,
    well,
)
from tritonclient.grpc.service_pb2 import ModelInferRequest


@pytest.fixture(scope="module")
def connection(server: EmbeddedServer) -> Iterator[Wire]:
    with Wire(server.url) as opened:
        yield opened
    print(f"\nhostile requests over gRPC: {sum(CASES.values())}, {dict(CASES)}")


@pytest.mark.parametrize("name", CLASSES)
def test_each_request_has_its_sentence(name: str, server: EmbeddedServer, guard: GuardClient, connection: Wire) -> None:
    taken = sum(connection.send(request, name) for request in hostile(name))
    print(f"\n{name}: {CASES[name]} requests, {taken} taken")
    well(server, guard)


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_on_a_stream(name: str, server: EmbeddedServer, guard: GuardClient, connection: Wire) -> None:
    requests = hostile(name)
    answers = connection.stream(requests, name)
    print(f"\n{name}: {answers} answers to {len(requests)} requests on one stream")
    well(server, guard)


def test_messages_that_are_no_protobuf(server: EmbeddedServer, guard: GuardClient, connection: Wire) -> None:
    """Bytes of good requests cut, overwritten and put together wrongly, alone and within a stream."""
    source = random.Random(1)
    whole = [good(model).SerializeToString() for model in wire.MODELS]
    broken = [source.randbytes(size) for size in (0, 1, 7, 100, 10_000)]
    broken += [b"\x0a" + bytes([127]) * 9 + b"\x01", b"\x0a\x04\xff\xfe\xfd\xfc", b"\xff" * 1000]
    for data in whole:
        broken += [data[: source.randrange(len(data))] for _ in range(10)]
        for _ in range(40):
            changed = bytearray(data)
            for _ in range(source.choice((1, 1, 2, 5))):
                changed[source.randrange(len(changed))] = source.randrange(256)
            broken.append(bytes(changed))
    for data in broken:
        connection.send(data, "bytes")
    for data in broken[::3]:
        connection.raw_stream([whole[0], data, whole[0]], "bytes in streams")
    well(server, guard)


@pytest.mark.trial
def test_streams_beside_mutants_hear_the_same(server: EmbeddedServer, guard: GuardClient, connection: Wire) -> None:
    words = re.findall(r"\w+ ", "Mix flour with water and salt then bake it for an hour ")

    def moderate(client: GuardClient) -> list[Any]:
        with client.stream("How do I bake bread?") as stream:
            found = [token for word in words for token in stream.step(word).tokens]
        return [(token.position, token.severity, list(token.severity_probabilities.values())) for token in found]

    expected = moderate(guard)
    over = threading.Event()
    heard: list[Any] = []

    def listen() -> None:
        with GuardClient(server.url, timeout_s=ATTEMPT_S) as client:
            while not over.is_set():
                try:
                    heard.append(moderate(client))
                except errors.GuardError as error:
                    heard.append(error)

    listeners = [threading.Thread(target=listen) for _ in range(2)]
    for listener in listeners:
        listener.start()
    try:
        for request in mutants(MUTANTS, seed=7):
            connection.send(request, "mutants")
    finally:
        over.set()
        for listener in listeners:
            listener.join()
    print(f"\n{len(heard)} streams beside {MUTANTS} mutants")
    assert len(heard) > len(listeners)
    assert all(each == expected for each in heard), [each for each in heard if each != expected][:1]
    well(server, guard)


def test_sequences_opened_with_garbage_take_no_slot(guard: GuardClient, connection: Wire) -> None:
    """More of them than there are slots, none ended, and all younger than what the server may evict. So the streams
    that other tests have left open must be older first."""
    time.sleep(float(STREAM_PARAMETERS["evict_s"]))
    garbage = [
        {wire.PROMPT: strings(b"\xff")}, {wire.PROMPT: strings(b"x" * 200_000)}, {wire.TOKEN_IDS: bytes(8)},
        {wire.PROMPT: strings(b"Hi."), wire.POSITION: b"\x01" + bytes(7)},
        {wire.PROMPT: strings(b"Hi."), wire.DEBOUNCE: bytes(8)},
        {wire.PROMPT: strings(b"Hi."), wire.TEXT: strings(b"\xc3")},
    ]  # fmt: skip
    for number in range(600):
        request = ModelInferRequest(model_name="stream_step")
        for tensor, data in ({wire.POSITION: bytes(8)} | garbage[number % len(garbage)]).items():
            request.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=[1, 1])
            request.raw_input_contents.append(data)
        put(request, {"sequence_id": str(uuid.uuid4()), "sequence_start": True})
        assert not connection.send(request, "garbage STARTs")
    opened = [str(uuid.uuid4()) for _ in range(200)]
    lengths = [guard.stream_step(session, prompt="Hi.", start=True).length for session in opened]
    for session, length in zip(opened, lengths, strict=True):
        guard.stream_step(session, position=length, end=True)


def test_the_log_holds_nothing_that_was_sent(server: EmbeddedServer, connection: Wire) -> None:
    session = f"{SECRET}-session"
    for model in (wire.STREAM_GUARD, wire.STREAM_STEP):
        for change in (*integers(good(model)), *sizes(good(model)), *dtypes(good(model))):
            request = good(model, sequence_id=session)
            change(request)
            connection.send(request, "secret sessions")
    assert SECRET not in server.log
