"""What an optional input may hold: anything malformed or empty is an error, and never lets more pass than asked for."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from qwen3guard_contract import wire
from qwen3guard_contract.labels import Category
from qwen3guard_server.server import EmbeddedServer
from support.hostile import Wire, conversation_ids, put, strings
from tritonclient.grpc.service_pb2 import ModelInferRequest

PROMPT = strings(b"How do I bake bread?")
MESSAGES = b'[{"role": "user", "content": "Hi."}]'
ALL = b"[%s]" % b", ".join(b'"%s"' % each.value.encode() for each in Category)
CONTEXT = 2048
"""Tokens in the demo guard's context."""
OK = ""
REFUSED, EMPTY, MALFORMED = "[INVALID_REQUEST]", "[EMPTY_TEXT]", "[INVALID_MESSAGES]"
TRITON = "unexpected shape for input"
"""Triton refuses it before a model sees it."""


Sent = Mapping[wire.Tensor, tuple[Sequence[int], bytes]]
"""The shape and the bytes of each tensor."""


def integer(number: int) -> bytes:
    return struct.pack("<q", number)


TEXTS: dict[wire.Tensor, dict[bytes, str]] = {
    wire.BLOCKED: {
        **dict.fromkeys(
            (
                b"", b" ", b"\x00", b"{}", b'""', b"1", b"null", b"true", b"[]", b" [ ] ", b"[[]]", b"[{}]", b"[null]",
                b"[1]", b'[""]', b'["violent"]', b'[" Violent"]', b'["Violent", "Violent"]', b'["None"]', b'"Violent"',
                b"Violent", b'{"Violent": 1}', b'["Violent"', b'["Violent"]]', b'["Violent"] ["PII"]', b'["Violent",]',
                b"[NaN]", b"\xff", '["Violent"]'.encode("utf-16"), b'["Violent"]' + b" " * 2000 + b"x",
                b"[" * 100_000, b'["Violent\x00"]',
            ),
            REFUSED,
        ),
        b'["Violent"]': OK, b' ["PII", "Violent"]\n': OK, ALL: OK,
    },
    wire.THRESHOLDS: {
        **dict.fromkeys(
            (
                b"", b" ", b"\x00", b"{}", b'""', b"0", b"1", b"0.5", b"null", b"[]", b"[[]]", b'{"categories": {}}',
                b'{"default": null}', b'{"default": "0.5"}', b'{"default": NaN}', b'{"default": Infinity}',
                b'{"default": 2}', b'{"default": -1}', b'{"default": true}', b'{"default": []}',
                b'{"default": 0.1, "default": 1}', b'{"categories": null}', b'{"categories": []}',
                b'{"categories": {"Violent": null}}', b'{"categories": {"violent": 0.1}}', b'{"threshold": 0.1}',
                b'{"default": 0.5', b'{"default": 0.5}{}', b'{"default": %s}' % (b"9" * 1900), b" " * 2001, b"\xff",
            ),
            REFUSED,
        ),
        b'{"default": 0}': OK, b'{"default": 1}': OK, b'{"categories": {"Violent": 0.1}}': OK,
    },
    wire.PROMPT: {b"": EMPTY, b" \n\t": EMPTY, "\u2003".encode(): EMPTY, b"\xff": "[INVALID_ENCODING]", b"Hi.": OK},
    wire.RESPONSE: {b"": EMPTY, b" \n\t": EMPTY, b"\xff": "[INVALID_ENCODING]", b"Hello.": OK},
    wire.MESSAGES: {
        **dict.fromkeys(
            (
                b"", b" ", b"{}", b'""', b"1", b"null", b"[[]]", b"[1]", b"[null]", b"[{}]", b'[{"role": "user"',
                b'[{"role": "user", "content": 1}]', b'[{"role": null, "content": "x"}]', MESSAGES + MESSAGES,
                b'[{"role": "user", "content": "x", "content": "y"}]',
            ),
            MALFORMED,
        ),
        b"[]": EMPTY, b'[{"role": "user", "content": ""}]': EMPTY, b'[{"role": "user"}]': EMPTY,
        b'[{"role": "", "content": "x"}]': "[UNKNOWN_ROLE]", MESSAGES: OK,
    },
    # Opening a stream with no text of its response is what every client does.
    wire.TEXT: {b"": OK, b" ": OK, b"Hi.": OK, b"\xff": "[INVALID_ENCODING]"},
    wire.STEP_ERROR: {
        b"": REFUSED, b"x": REFUSED, b"\xff": "[INVALID_ENCODING]", b"[NOBODY] x": REFUSED,
        b"[EMPTY_TEXT] The text is empty.": EMPTY,
    },
}  # fmt: skip
NUMBERS: dict[wire.Tensor, dict[bytes, str]] = {
    wire.DEBOUNCE: {
        **{integer(each): REFUSED for each in (0, -1, CONTEXT + 1, 32_769, 2**31, 2**62, 2**63 - 1, -(2**63))},
        integer(1): OK, integer(CONTEXT // 2): OK,
    },
    wire.STRICT: {b"\x00": OK, b"\x01": OK, b"\x02": OK, b"\xff": OK},  # all but 0 is true, as in C
    wire.RECENT: {b"\x00": OK, b"\x01": OK},
    wire.QUERY_INDEX: {
        **{integer(each): REFUSED for each in (-2, 10**6, 2**62, -(2**63))}, integer(-1): OK, integer(0): OK,
    },
    wire.RESPONSE_START: {**{integer(each): REFUSED for each in (-1, 10**6, 2**62, -(2**63))}, integer(0): OK},
}  # fmt: skip
MODELS = {
    "stream_step": {wire.BLOCKED, wire.THRESHOLDS, wire.PROMPT, wire.MESSAGES, wire.TEXT, *list(NUMBERS)[:3]},
    "stream_guard": {
        wire.BLOCKED,
        wire.THRESHOLDS,
        wire.STEP_ERROR,
        wire.DEBOUNCE,
        wire.QUERY_INDEX,
        wire.RESPONSE_START,
    },
    "classify": {wire.PROMPT, wire.MESSAGES, wire.RESPONSE, wire.RECENT},
}


@pytest.fixture(scope="module")
def connection(server: EmbeddedServer) -> Iterator[Wire]:
    with Wire(server.url) as opened:
        yield opened


def answer(connection: Wire, model: str, tensors: Sent, **flags: Any) -> str:
    """The server's sentence; empty if it took the request."""
    request = ModelInferRequest(model_name=model)
    for tensor, (shape, data) in tensors.items():
        request.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=shape)
        request.raw_input_contents.append(data)
    if model != "classify":
        put(request, {"sequence_id": str(uuid.uuid4()), "sequence_start": True, "sequence_end": True} | flags)
    try:
        connection.stub.ModelInfer(request, timeout=60)
    except grpc.RpcError as error:
        return str(error.details()) if error.code() is grpc.StatusCode.INVALID_ARGUMENT else str(error)
    return ""


def others(model: str, tensor: wire.Tensor) -> Sent:
    """What a good request has beside the tensor."""
    if model == "stream_guard":
        ids = np.array(conversation_ids(), np.int64)
        return {wire.INPUT_IDS: ([1, len(ids)], ids.tobytes()), wire.POSITION: ([1, 1], bytes(8))}
    prompt: Sent = {} if tensor in (wire.PROMPT, wire.MESSAGES) else {wire.PROMPT: ([1, 1], PROMPT)}
    return prompt if model == "classify" else {**prompt, wire.POSITION: ([1, 1], bytes(8))}


def cases() -> Iterator[Any]:
    for model, tensors in MODELS.items():
        for tensor, values in [*TEXTS.items(), *NUMBERS.items()]:
            for value, expected in values.items() if tensor in tensors else ():
                data = strings(value) if tensor.dtype == "BYTES" else value
                name = f"{model} {tensor.name}"
                yield pytest.param(model, {tensor: ([1, 1], data)}, expected, id=f"{name} {value[:40]!r}")
            if tensor in tensors and tensor.dims == (1,):
                yield pytest.param(model, {tensor: ([1, 0], b"")}, TRITON, id=f"{name} of nothing")
                yield pytest.param(model, {tensor: ([1, 2], 2 * data)}, TRITON, id=f"{name} twice")


@pytest.mark.parametrize(("model", "sent", "expected"), list(cases()))
def test_each_value_is_taken_or_refused_by_name(connection: Wire, model: str, sent: Sent, expected: str) -> None:
    sentence = answer(connection, model, {**others(model, *sent), **sent})
    assert (expected in sentence) if expected else sentence == OK, sentence


def test_every_optional_input_has_its_values() -> None:
    tried = {(model, tensor) for model, tensors in MODELS.items() for tensor in tensors}
    ids = {("stream_step", wire.TOKEN_IDS)}  # below
    from_the_tokenizer = {("stream_guard", wire.STRICT)}  # as for stream_step
    optional = {
        (model.name, tensor)
        for model in (wire.STREAM_STEP, wire.STREAM_GUARD, wire.CLASSIFY)
        for tensor in model.inputs
        if tensor.optional
    }
    assert optional == tried | ids | from_the_tokenizer


def test_token_ids_of_nothing_write_nothing(connection: Wire) -> None:
    """With START or END alone, as for an empty text."""
    nothing: Sent = {wire.POSITION: ([1, 1], bytes(8)), wire.TOKEN_IDS: ([1, 0], b"")}
    opening: Sent = {**nothing, wire.PROMPT: ([1, 1], PROMPT)}
    assert answer(connection, "stream_step", opening) == OK
    assert EMPTY in answer(connection, "stream_step", nothing)
    assert REFUSED in answer(connection, "stream_step", {**opening, wire.TEXT: ([1, 1], strings(b"Hi."))})


@pytest.mark.parametrize(("tensor", "index"), [(wire.QUERY_INDEX, 0), (wire.RESPONSE_START, 1)])
def test_a_later_step_has_no_token_that_is_not_judged(connection: Wire, tensor: wire.Tensor, index: int) -> None:
    name = str(uuid.uuid4())
    opening = others("stream_guard", tensor)
    assert answer(connection, "stream_guard", opening, sequence_id=name, sequence_end=False) == OK
    end = integer(len(conversation_ids()))
    step: Sent = {wire.INPUT_IDS: ([1, 1], integer(1)), wire.POSITION: ([1, 1], end)}
    later = {"sequence_id": name, "sequence_start": False, "sequence_end": False}
    assert REFUSED in answer(connection, "stream_guard", {**step, tensor: ([1, 1], integer(index))}, **later)
    assert answer(connection, "stream_guard", step, **later | {"sequence_end": True}) == OK
