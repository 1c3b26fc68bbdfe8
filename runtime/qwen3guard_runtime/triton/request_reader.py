"""Reads a request of Triton's into a plain one: its tensors, checked, and what says which session it is of.

This module reads Triton's objects, but imports nothing of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.text import shown
from qwen3guard_contract.wire import CANARY, LONGEST_SCOPE, REPLAY, SCOPE, Model

from qwen3guard_runtime.request import Request

SEQUENCE_START, SEQUENCE_END = 1, 2
"""Triton's flags of a request."""


def plain_request(request: Any, model: Model) -> Request:
    """Raises InvalidRequest."""
    parameters = _parameters(request)
    _check(parameters)
    return Request(
        _tensors(request, model),
        *_head(request, parameters),
        parameters.get(SCOPE),
        parameters.get(REPLAY) is True,
        is_abandoned=lambda: is_abandoned(request),
    )


def waits_s(request: Any) -> float:
    """For how many seconds the request's caller waits; 0 if for ever. An END is never too late: without it, its session
    would stay."""
    return 0.0 if _ends(request) else float(request.timeout()) / 1e6


def is_abandoned(request: Any) -> bool:
    """Whether the request's caller has hung up, or cancelled it. That is asked of the server's process. An END is
    wanted all the same.

    An ensemble tells its next model only what it knows when it calls it: who hangs up later is not noticed.
    """
    if _ends(request):
        return False
    try:
        return bool(request.is_cancelled())
    except Exception:  # it cannot be asked: then somebody may wait
        return False


def _ends(request: Any) -> bool:
    return bool(request.flags() & SEQUENCE_END)


def without_tensors(request: Any) -> Request:
    """What is known of a request whose tensors cannot be read."""
    try:
        parameters = _parameters(request)
    except InvalidRequest:
        parameters = {}
    return Request({}, *_head(request, parameters))


def _head(request: Any, parameters: Mapping[str, Any]) -> tuple[frozenset[str], int | str, bool, bool, bool]:
    """What a Request has after its tensors."""
    flags = request.flags()
    return (
        frozenset(request.requested_output_names()),
        request.correlation_id(),
        bool(flags & SEQUENCE_START),
        _ends(request),
        parameters.get(CANARY) is True,
    )


def _check(parameters: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a parameter of a wrong form, and for one that nobody would read: a policy among them
    would go unheard."""
    for name, value in parameters.items():
        if name == SCOPE:
            if not (isinstance(value, str) and 0 < len(value) <= LONGEST_SCOPE):
                raise InvalidRequest(f"The parameter {SCOPE} must be a text of 1 to {LONGEST_SCOPE} characters.")
        elif name not in (CANARY, REPLAY):
            raise InvalidRequest(f"The request has a parameter {shown(name)}, which is not read; a policy is a tensor.")
        elif not isinstance(value, bool):
            raise InvalidRequest(f"The parameter {name} must be true or false.")


def _parameters(request: Any) -> Mapping[str, Any]:
    """The request's own parameters. Triton gives them as JSON, which is `{}` for nearly every step. Raises
    InvalidRequest."""
    text = request.parameters()
    if text == "{}":
        return {}
    try:
        parameters: dict[str, Any] = json.loads(text)
    except ValueError:
        raise InvalidRequest("The parameters of the request cannot be read.") from None
    return parameters


def _tensors(request: Any, model: Model) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a request by name, without the batch dimension. Raises InvalidRequest."""
    tensors = {}
    dims = {tensor.name: tensor.dims for tensor in model.inputs}
    for tensor in request.inputs():
        array, name = _read(tensor), tensor.name()
        if not _fits(array.shape, (1, *dims.get(name, ()))):
            raise InvalidRequest(f"{name} must have the shape {[1, *dims.get(name, ())]}.")
        tensors[name] = array[0]
    missing = [tensor.name for tensor in model.inputs if not tensor.optional and tensor.name not in tensors]
    if missing:
        raise InvalidRequest(f"{missing[0]} is missing.")
    return tensors


def _read(tensor: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(tensor.as_numpy())
    except Exception as error:
        raise InvalidRequest(f"{tensor.name()} cannot be read ({type(error).__name__}).") from None


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(dim in (-1, size) for size, dim in zip(shape, dims, strict=True))
