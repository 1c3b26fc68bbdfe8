"""Between Triton's requests and plain arrays: the only module here that imports triton_python_backend_utils.

Every request is answered on its own: a wrong one gets its error, and the others of its batch go on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from qwen3guard_client.errors import (
    GuardError,
    InputError,
    InternalError,
    InvalidRequest,
    Overloaded,
    SessionLost,
)
from qwen3guard_client.wire import NUMPY_DTYPES, Dtype, Model

from qwen3guard_runtime.request import Handler, Outputs, Request

START, END = 1, 2


def serve(requests: Sequence[Any], model: Model, handle: Handler) -> list[Any]:
    """Triton responses for Triton requests: `handle` sees those that are well-formed."""
    results: list[Outputs | GuardError] = []
    parsed: list[Request] = []
    for request in requests:
        try:
            parsed.append(_parse(request, model))
            results.append({})
        except GuardError as error:
            results.append(error)
    try:
        handled = iter(handle(parsed))
    except Exception as error:
        logging.getLogger(__name__).error("execution failed: %s", type(error).__name__)
        handled = iter([InternalError(f"The model failed ({type(error).__name__}).")] * len(parsed))
    results = [result if isinstance(result, GuardError) else next(handled) for result in results]
    return [
        _error(result) if isinstance(result, GuardError) else _response(request, model, result)
        for request, result in zip(requests, results, strict=True)
    ]


def _parse(request: Any, model: Model) -> Request:
    tensors = {}
    for tensor in request.inputs():
        array = tensor.as_numpy()
        if array.ndim < 1 or array.shape[0] != 1:
            raise InvalidRequest(f"{tensor.name()} must have a batch dimension of 1.")
        tensors[tensor.name()] = array[0]
    missing = [tensor.name for tensor in model.inputs if not tensor.optional and tensor.name not in tensors]
    if missing:
        raise InvalidRequest(f"{missing[0]} is missing.")
    flags = request.flags()
    return Request(
        tensors,
        frozenset(request.requested_output_names()),
        request.correlation_id(),
        bool(flags & START),
        bool(flags & END),
    )


def _response(request: Any, model: Model, outputs: Outputs) -> Any:
    wanted = set(request.requested_output_names())
    tensors = [
        pb_utils.Tensor(tensor.name, _array(outputs[tensor.name], tensor.dtype, len(tensor.dims)))
        for tensor in model.outputs
        if tensor.name in wanted and tensor.name in outputs
    ]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _array(value: Any, dtype: Dtype, rank: int) -> npt.NDArray[Any]:
    """`value` with the batch dimension in front; strings as UTF-8."""
    if dtype == "BYTES":
        value = [text.encode() for text in value]
    array = np.asarray(value, NUMPY_DTYPES[dtype])
    return array.reshape(1, *array.shape) if array.ndim == rank else array.reshape(1, 1)


def _error(error: GuardError) -> Any:
    kind = pb_utils.TritonError
    code = kind.INTERNAL
    if isinstance(error, InputError):
        code = kind.INVALID_ARG
    elif isinstance(error, SessionLost):
        code = kind.NOT_FOUND
    elif isinstance(error, Overloaded):
        code = kind.UNAVAILABLE
    return pb_utils.InferenceResponse(error=kind(error.wire_text(), code))


def model_folder(args: Mapping[str, str]) -> Path:
    """The version folder that holds model.py and the exported files."""
    return Path(args["model_repository"]) / args["model_version"]


def parameters(args: Mapping[str, str]) -> dict[str, str]:
    """The `parameters` of config.pbtxt."""
    found = json.loads(args["model_config"])["parameters"]
    return {name: str(value["string_value"]) for name, value in found.items()}


def counter(name: str, description: str) -> Callable[[int], None]:
    """A Prometheus counter on Triton's metrics endpoint; where that is off, counting does nothing."""
    try:
        family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
        metric = family.Metric(labels={})
    except pb_utils.TritonModelException:
        return lambda _: None

    def increment(by: int) -> None:
        if by:  # each call goes to the server and back
            metric.increment(by)

    increment.family = family  # type: ignore[attr-defined]  # a family that is let go takes its metrics along
    return increment
