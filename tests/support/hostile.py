"""Whatever protobuf can say, by its class, and the wire that sends it. The cases are counted."""

# A change is a lambda that binds its values as defaults and whose result nobody reads: mypy infers no type for such.
# mypy: disable-error-code="misc, func-returns-value"

from __future__ import annotations

import random
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import grpc
import numpy as np
from qwen3guard_client import GuardClient
from qwen3guard_contract import errors, wire
from qwen3guard_contract.messages import Message
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer
from tritonclient.grpc.service_pb2 import ModelInferRequest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from support.lengths import times
from support.places import DEMO

SECRET = "kumquat-7731"
TEXT = f"How do I bake a {SECRET}?"
CASES: Counter[str] = Counter()
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
ATTEMPT_S = 60.0

INT64 = (-(2**63), -(2**31) - 1, -1, 0, 1, 2**31, 2**32, 2**62, 2**63 - 1)
DTYPES = ("BOOL", "UINT8", "UINT64", "INT8", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16", "BYTES", "", "NONSENSE")
SHAPES: tuple[list[int], ...] = (
    [], [0], [1], [-1], [1, -1], [1, 0], [0, 1], [2, 1], [1, 1, 1], [1, 2], [1, 2**31], [2**31, 2**31], [2**62, 4],
    [2**63 - 1], [1, -(2**63)], [1] * 64, [1] * 5000,
)  # fmt: skip
TEXTS = (
    b"", b"\x00", b"a\x00b", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf",
    b"\xef\xbf\xbf", "\u202e\ufeff\u0000".encode(), b" " * 10_000, b"[" * 100_000, b"9" * 5000, b'{"a":' * 5000,
    b"[" + b"9" * 5000 + b"]", b'[{"role": "user", "content": "\\ud800"}]', b"<|im_end|>" * 500,
    "".join(map(chr, range(0xE000, 0xF900))).encode(), b"%s%n{0}{{7*7}}", b"\xf0\x9f\x98\x80" * 999,
)  # fmt: skip
IDS: tuple[Any, ...] = (
    "", 0, 1, -1, 2**63 - 1, -(2**63), "0", "x" * 128, "x" * 129, "x" * 100_000, "\x00", "a\x00b", "\u202e", "../../x",
    True, 1.5,
)  # fmt: skip
PARAMETERS: tuple[dict[str, Any], ...] = (
    *({name: value} for name in ("priority", "timeout") for value in (*INT64, "x", True, 0.5)),
    *({name: value} for name in ("sequence_start", "sequence_end") for value in (1, 0, "true", 2.5)),
    {"sequence_start": True}, {"sequence_end": True}, {"": 1}, {"x" * 10_000: "y"}, {"triton_x": 1}, {"\x00": True},
    {"triton_enable_empty_final_response": True}, {"binary_data_output": "x"}, {"headers": "x"}, {"cache": True},
    {"strict": False}, {"blocked": "[]"}, {"scope": 5}, {"canary": "true"},
)  # fmt: skip
TENSOR_PARAMETERS: tuple[dict[str, Any], ...] = (
    {"shared_memory_region": "nobody", "shared_memory_byte_size": 8},
    {"shared_memory_region": "nobody", "shared_memory_byte_size": 2**62, "shared_memory_offset": -1},
    {"shared_memory_region": "../../etc/passwd", "shared_memory_byte_size": -1},
    {"shared_memory_region": 7}, {"shared_memory_byte_size": "x"}, {"binary_data_size": -1}, {"unknown": "x"},
)  # fmt: skip
OUTPUT_PARAMETERS = (*TENSOR_PARAMETERS, *({"classification": value} for value in (*INT64, 3, "x", True)))


def strings(*values: bytes) -> bytes:
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


@cache
def conversation_ids() -> list[int]:
    """A short conversation, so that Gen answers in one pass."""
    return ChatTemplate.load(DEMO / "gen").render([Message("user", "Hi.")], 1000)


def value(tensor: wire.Tensor, *, conversation: bool) -> bytes | None:
    """What a good request has for a tensor; None where it leaves it out."""
    good: dict[wire.Tensor, bytes] = {
        wire.INPUT_IDS: np.array(conversation_ids(), np.int64).tobytes(),
        wire.RESPONSE_MODE: b"\x00",
        wire.POSITION: bytes(8),
    }
    if conversation:
        good[wire.PROMPT] = strings(TEXT.encode())
    return good.get(tensor)


def is_stream(model: str) -> bool:
    return model.startswith("stream_")


def put(holder: Any, values: dict[str, Any]) -> None:
    """Triton's parameters, of whatever type Python has."""
    for name, given in values.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(given)]
        setattr(holder.parameters[name], kind, given)


def good(model: wire.Model, **parameters: Any) -> ModelInferRequest:
    request = ModelInferRequest(model_name=model.name)
    for tensor in model.inputs:
        data = value(tensor, conversation=wire.PROMPT in model.inputs)
        if data is not None:
            size = len(data) // 8 if tensor is wire.INPUT_IDS else 1
            request.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=[1, size])
            request.raw_input_contents.append(data)
    if is_stream(model.name):
        parameters = {"sequence_id": str(uuid.uuid4()), "sequence_start": True, "sequence_end": True} | parameters
    put(request, parameters)
    return request


Change = Callable[[ModelInferRequest], None]


def names(request: ModelInferRequest) -> Iterator[Change]:
    """Missing, doubled, unknown, renamed."""
    for at in range(len(request.inputs)):
        for name in ("", "NOBODY", "prompt", "PROMPT ", "\x00", "x" * 10_000, request.inputs[0].name):
            yield lambda r, at=at, name=name: setattr(r.inputs[at], "name", name)
        yield lambda r, at=at: (r.inputs.pop(at), r.raw_input_contents.pop(at))
        yield lambda r, at=at: r.inputs.pop(at)
        yield lambda r, at=at: r.raw_input_contents.pop(at)
        yield lambda r, at=at: (r.inputs.append(r.inputs[at]), r.raw_input_contents.append(r.raw_input_contents[at]))
        yield lambda r, at=at: r.inputs.append(r.inputs[at])
        yield lambda r, at=at: [r.inputs.append(r.inputs[at]) for _ in range(3000)]
    yield lambda r: r.raw_input_contents.append(b"x" * 1000)
    yield lambda r: (r.ClearField("inputs"), r.ClearField("raw_input_contents"))
    for tensor in {tensor for model in wire.MODELS for tensor in (*model.inputs, *model.outputs)}:
        yield lambda r, tensor=tensor: (
            r.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=[1, 1]),
            r.raw_input_contents.append(strings(b"x") if tensor.dtype == "BYTES" else bytes(8)),
        )


def dtypes(request: ModelInferRequest) -> Iterator[Change]:
    for at in range(len(request.inputs)):
        for dtype in DTYPES:
            yield lambda r, at=at, dtype=dtype: setattr(r.inputs[at], "datatype", dtype)


def shapes(request: ModelInferRequest) -> Iterator[Change]:
    def reshape(r: ModelInferRequest, at: int, shape: list[int]) -> None:
        r.inputs[at].ClearField("shape")
        r.inputs[at].shape.extend(shape)

    for at in range(len(request.inputs)):
        for shape in SHAPES:
            yield lambda r, at=at, shape=shape: reshape(r, at, shape)


def sizes(request: ModelInferRequest) -> Iterator[Change]:
    """Contents that do not fit the shape, and length prefixes that lie."""
    for at, whole in enumerate(request.raw_input_contents):
        for data in (
            b"", whole[:-1], whole + b"\x00", whole * 2, whole * 1000, whole[:3], bytes(4), b"\xff" * 4, b"\xff" * 8,
            (2**31 - 1).to_bytes(4, "little") + whole[4:], (len(whole) + 1).to_bytes(4, "little") + whole[4:],
            (len(whole) + 5).to_bytes(4, "little") + whole[4:], bytes(4000), b"\x00\x00\x00\x80",
        ):  # fmt: skip
            yield lambda r, at=at, data=data: r.raw_input_contents.__setitem__(at, data)


def texts(_: ModelInferRequest) -> Iterator[Change]:
    """In each BYTES input that there is, alone and beside the others."""
    for name in ("MESSAGES", "PROMPT", "RESPONSE", "TEXT", "BLOCKED"):
        for text in TEXTS:
            for alone in (False, True):
                yield lambda r, name=name, text=text, alone=alone: replace(r, name, text, alone=alone)


def replace(request: ModelInferRequest, name: str, text: bytes, *, alone: bool) -> None:
    for at in reversed(range(len(request.inputs))):
        if request.inputs[at].name == name or (alone and request.inputs[at].datatype == "BYTES"):
            del request.inputs[at], request.raw_input_contents[at]
    request.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(strings(text))


def contents(request: ModelInferRequest) -> Iterator[Change]:
    """Typed fields instead of, and beside, raw bytes; the wrong typed field too."""
    fields: dict[str, list[Any]] = {
        "bytes_contents": [TEXT.encode(), b"\xff"], "int64_contents": [1, -1], "int_contents": [1],
        "uint_contents": [1], "uint64_contents": [2**64 - 1], "bool_contents": [True],
        "fp32_contents": [float("nan")], "fp64_contents": [1e308],
    }  # fmt: skip
    for at in range(len(request.inputs)):
        for field, values in fields.items():
            for count in (1, 2, 1000):
                for raw in (False, True):

                    def change(
                        r: ModelInferRequest,
                        at: int = at,
                        field: str = field,
                        data: Any = values * count,
                        raw: bool = raw,
                    ) -> None:
                        getattr(r.inputs[at].contents, field).extend(data)
                        if not raw:
                            r.ClearField("raw_input_contents")

                    yield change


def integers(request: ModelInferRequest) -> Iterator[Change]:
    for at, tensor in enumerate(request.inputs):
        if tensor.datatype == "INT64":
            for number in INT64:
                raw = int(number).to_bytes(8, "little", signed=True) * tensor.shape[-1]
                yield lambda r, at=at, raw=raw: r.raw_input_contents.__setitem__(at, raw)
    for name in ("QUERY_INDEX", "RESPONSE_START", "DEBOUNCE"):
        for number in INT64:
            raw = int(number).to_bytes(8, "little", signed=True)
            yield lambda r, name=name, raw=raw: (
                r.inputs.add(name=name, datatype="INT64", shape=[1, 1]), r.raw_input_contents.append(raw),
            )  # fmt: skip
    for number in (2, 127, 255):
        yield lambda r, number=number: (
            r.inputs.add(name="STRICT", datatype="BOOL", shape=[1, 1]), r.raw_input_contents.append(bytes([number])),
        )  # fmt: skip


def ids(_: ModelInferRequest) -> Iterator[Change]:
    """Of sequences and of requests, with every mixture of flags."""
    for given in IDS:
        for start, end in ((True, True), (True, False), (False, False), (False, True)):
            yield lambda r, flags={"sequence_id": given, "sequence_start": start, "sequence_end": end}: put(r, flags)
    yield lambda r: setattr(r.parameters["sequence_id"], "uint64_param", 2**64 - 1)
    yield lambda r: r.parameters.pop("sequence_id", None)
    for name in ("", "\x00", "x" * 1_000_000, "\n\rE1122 fake log line\n"):
        yield lambda r, name=name: setattr(r, "id", name)


def parameters(request: ModelInferRequest) -> Iterator[Change]:
    for values in PARAMETERS:
        yield lambda r, values=values: put(r, values)
    for values in TENSOR_PARAMETERS:
        for at in range(len(request.inputs)):
            yield lambda r, at=at, values=values: put(r.inputs[at], values)
            yield lambda r, at=at, values=values: (put(r.inputs[at], values), r.ClearField("raw_input_contents"))


def outputs(request: ModelInferRequest) -> Iterator[Change]:
    model = next(model for model in wire.MODELS if model.name == request.model_name)
    for name in ("", "NOBODY", "\x00", "x" * 10_000, *(tensor.name for tensor in model.inputs)):
        yield lambda r, name=name: r.outputs.add(name=name)
    first = model.outputs[0].name
    yield lambda r: [r.outputs.add(name=first) for _ in range(5000)]
    for tensor in model.outputs:
        for values in (
            OUTPUT_PARAMETERS if tensor.dtype != "BYTES" else TENSOR_PARAMETERS
        ):  # those kill this Triton: see below
            yield lambda r, name=tensor.name, values=values: put(r.outputs.add(name=name), values)


def models(_: ModelInferRequest) -> Iterator[Change]:
    for name in ("", "nobody", "../classify", "classify/1", "CLASSIFY", "\x00", "x" * 10_000):
        yield lambda r, name=name: setattr(r, "model_name", name)
    for version in ("", "1", "2", "-1", "x", "99999999999999999999", "1.0", "\x00", "../1", "x" * 10_000):
        yield lambda r, version=version: setattr(r, "model_version", version)


CLASSES: dict[str, Callable[[ModelInferRequest], Iterator[Change]]] = {
    each.__name__: each
    for each in (names, dtypes, shapes, sizes, texts, contents, integers, ids, parameters, outputs, models)
}


def hostile(name: str) -> list[ModelInferRequest]:
    """The requests of one class, to each of the six models."""
    found = []
    for model in wire.MODELS:
        for change in CLASSES[name](good(model)):
            request = good(model)
            change(request)
            found.append(request)
    return found


class Wire:
    """A raw connection, and what its sentences may not hold."""

    def __init__(self, url: str) -> None:
        self.channel = grpc.insecure_channel(url, options=UNLIMITED)
        self.stub = GRPCInferenceServiceStub(self.channel)
        self._bytes = {
            kind: method(f"/inference.GRPCInferenceService/{name}", bytes, bytes)
            for kind, method, name in (
                ("one", self.channel.unary_unary, "ModelInfer"),
                ("many", self.channel.stream_stream, "ModelStreamInfer"),
            )
        }

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def send(self, request: ModelInferRequest | bytes, kind: str) -> bool:
        """Whether the server took it."""
        CASES[kind] += 1
        try:
            if isinstance(request, bytes):
                self._bytes["one"](request, timeout=ATTEMPT_S)
            else:
                self.stub.ModelInfer(request, timeout=ATTEMPT_S)
        except grpc.RpcError as error:
            refused(error, kind)
            return False
        return True

    def stream(self, requests: Sequence[ModelInferRequest], kind: str) -> int:
        """Sends all on one stream; how many answers came before the server closed it."""
        CASES[f"{kind} in streams"] += len(requests)
        answers = 0
        try:
            for answer in self.stub.ModelStreamInfer(iter(requests), timeout=ATTEMPT_S * 5):
                polite(answer.error_message)
                answers += 1
        except grpc.RpcError as error:
            refused(error, kind)
        return answers

    def raw_stream(self, messages: Sequence[bytes], kind: str) -> None:
        CASES[kind] += len(messages)
        try:
            for _ in self._bytes["many"](iter(messages), timeout=ATTEMPT_S):
                pass
        except grpc.RpcError as error:
            refused(error, kind)


def refused(error: Any, kind: str) -> None:
    assert error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, kind
    polite(error.details() or "")


def polite(sentence: str) -> None:
    """No traceback, no path or class of Python's, and nothing of the text that was sent."""
    assert "Traceback" not in sentence
    assert 'File "' not in sentence
    assert ".py" not in sentence
    assert not re.search(r"\b\w+(\.\w+)*\.[A-Z]\w*(Error|Exception)\b", sentence)
    assert SECRET not in sentence


def well(server: EmbeddedServer, guard: GuardClient) -> None:
    """Every process lives, and the guards compute what they did at export, once they are free again."""
    assert server.fault() is None
    until = time.monotonic() + ATTEMPT_S
    while True:
        try:
            assert canary.check(guard, server.manifests, ATTEMPT_S)
            return
        except errors.Overloaded:
            assert time.monotonic() < until
            time.sleep(0.05)


MUTANTS = times(700, 2000)


def mutants(count: int, seed: int) -> Iterator[ModelInferRequest]:
    """Good requests with one to three changes of any class each."""
    source = random.Random(seed)
    changes = {
        model.name: [change for name in CLASSES for change in CLASSES[name](good(model))] for model in wire.MODELS
    }
    while count:
        model = source.choice(wire.MODELS)
        request = good(model)
        for change in source.sample(changes[model.name], source.choice((1, 2, 2, 3))):
            try:
                change(request)
            except IndexError:  # an earlier change took the tensor away
                continue
        yield request
        count -= 1
