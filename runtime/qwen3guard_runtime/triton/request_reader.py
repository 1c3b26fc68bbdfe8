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
from qwen3guard_contract.wire import CANARY, LONGEST_SCOPE, SCOPE, Model

from qwen3guard_runtime.request import Request

SEQUENCE_START, SEQUENCE_END = 1, 2
"""Triton's flags of a request."""


def plain_request(request: Any, model: Model) -> Request:
    """Raises InvalidRequest."""
    parameters = _parameters(request)
    return Request(_tensors(request, model), *_head(request, parameters), _scope(parameters))


def without_tensors(request: Any) -> Request:
    """What is known of a request whose tensors cannot be read."""
    return Request({}, *_head(request, _parameters(request)))


def _head(request: Any, parameters: Mapping[str, Any]) -> tuple[frozenset[str], int | str, bool, bool, bool]:
    """What a Request has after its tensors."""
    flags = request.flags()
    return (
        frozenset(request.requested_output_names()),
        request.correlation_id(),
        bool(flags & SEQUENCE_START),
        bool(flags & SEQUENCE_END),
        parameters.get(CANARY) is True,
    )


def _scope(parameters: Mapping[str, Any]) -> str | None:
    """Raises InvalidRequest."""
    scope = parameters.get(SCOPE)
    if scope is not None and not (isinstance(scope, str) and 0 < len(scope) <= LONGEST_SCOPE):
        raise InvalidRequest(f"The parameter {SCOPE} must be a text of 1 to {LONGEST_SCOPE} characters.")
    return scope


def _parameters(request: Any) -> Mapping[str, Any]:
    """The request's own parameters. Triton gives them as JSON, which is `{}` for nearly every step."""
    text = request.parameters()
    if text == "{}":
        return {}
    try:
        parameters = json.loads(text)
    except ValueError:
        return {}
    return parameters if isinstance(parameters, dict) else {}


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
