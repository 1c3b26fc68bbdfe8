"""The parameters of a request as Triton gives them: what nobody would read is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qwen3guard_contract import wire
from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_runtime.request import Request
from qwen3guard_runtime.triton.request_reader import (
    SEQUENCE_END,
    SEQUENCE_START,
    plain_request,
    waits_s,
    without_tensors,
)

MODEL = wire.GUARD_TOKENIZER


def request(parameters: Any) -> Any:
    values = {
        tensor.name: np.full([1 if size == -1 else size for size in (1, *tensor.dims)], b"x", object)
        for tensor in MODEL.inputs
    }
    tensors = [SimpleNamespace(name=lambda n=n: n, as_numpy=lambda v=v: v) for n, v in values.items()]
    return SimpleNamespace(
        inputs=lambda: tensors,
        requested_output_names=list,
        correlation_id=lambda: 0,
        flags=lambda: 0,
        parameters=lambda: parameters if isinstance(parameters, str) else json.dumps(parameters),
    )


def read(parameters: Any) -> Request:
    return plain_request(request(parameters), MODEL)


def test_the_parameters_that_are_read() -> None:
    assert (read({}).scope, read({}).canary) == (None, False)
    assert (read({"scope": "a"}).scope, read({"canary": True}).canary) == ("a", True)
    assert (read({}).replay, read({"replay": True}).replay) == (False, True)


def test_triton_is_asked_whether_the_caller_has_hung_up() -> None:
    asked = request({})
    plain = plain_request(asked, MODEL)
    assert not plain.is_abandoned()  # a Triton that cannot be asked
    for gone in (True, False):
        asked.is_cancelled = lambda gone=gone: gone
        assert plain.is_abandoned() is gone


def test_the_end_of_a_session_is_never_dropped() -> None:
    """Its caller may hang up at once, and it may have waited for long: without it the session would stay."""
    sent = request({})
    sent.is_cancelled, sent.timeout = lambda: True, lambda: 2_500_000
    for flags, dropped, waits in [(0, True, 2.5), (SEQUENCE_START, True, 2.5)] + [
        (flags, False, 0.0) for flags in (SEQUENCE_END, SEQUENCE_START | SEQUENCE_END)
    ]:
        sent.flags = lambda flags=flags: flags
        assert plain_request(sent, MODEL).is_abandoned() is dropped
        assert waits_s(sent) == waits


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"strict": False}, "'strict'"),
        ({"blocked": "[]"}, "'blocked'"),
        ({"Scope": "a"}, "'Scope'"),
        ({"scope": "a", "": 1}, "''"),
        ({"canary": "true"}, "canary must be"),
        ({"canary": 1}, "canary must be"),
        ({"replay": "true"}, "replay must be"),
        ({"scope": 5}, "scope must be"),
        ({"scope": ""}, "scope must be"),
        ({"scope": "x" * 257}, "scope must be"),
        ("{", "cannot be read"),
    ],
    ids=str,
)
def test_any_other_is_refused_by_name(parameters: Any, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        read(parameters)
    assert without_tensors(request(parameters)).tensors == {}
