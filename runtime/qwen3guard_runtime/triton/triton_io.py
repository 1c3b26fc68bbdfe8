"""Turns Triton's requests into plain arrays, and results into Triton's responses. No other module of the runtime
imports triton_python_backend_utils.

Every request is answered on its own: a bad request gets its error, and the others of its batch are answered.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from qwen3guard_contract.errors import Abandoned, GuardError, InputError, InternalError, Overloaded, SessionLost
from qwen3guard_contract.wire import NUMPY_DTYPES, Dtype, Model

from qwen3guard_runtime.request import Handler, Outputs, Refuse, Request
from qwen3guard_runtime.telemetry import metrics
from qwen3guard_runtime.triton.metrics_endpoint import MetricsEndpoint
from qwen3guard_runtime.triton.refusal_log import RefusalLog
from qwen3guard_runtime.triton.request_reader import plain_request, without_tensors


def serve(
    requests: Sequence[Any],
    model: Model,
    handle: Handler,
    refusals: RefusalLog,
    refuse: Refuse = lambda _, error: error,
) -> list[Any]:
    """Returns one Triton response for each Triton request.

    `handle` gets the well-formed requests, and `refuse` each other one with its error, and all if `handle` raises.
    `refusals` notes those that are answered with an error.
    """
    began = time.monotonic()
    results: list[Any] = []  # None for those that `handle` answers
    parsed: list[Request] = []
    plain: list[Request] = []  # all, with their tensors or without
    for request in requests:
        try:
            plain.append(plain_request(request, model))
            parsed.append(plain[-1])
            results.append(None)
        except GuardError as error:
            plain.append(without_tensors(request))
            results.append(refuse(plain[-1], error))
    try:
        handled = iter(handle(parsed))
    except Exception as error:
        failure = error if isinstance(error, GuardError) else _unexpected(error)
        handled = iter([refuse(request, failure) for request in parsed])
    results = [next(handled) if result is None else result for result in results]
    seconds = time.monotonic() - began
    for request, result, told in zip(requests, results, plain, strict=True):
        if isinstance(result, GuardError):
            refusals.note(request, result, seconds, canary=told.canary)
    return [
        _error(result) if isinstance(result, GuardError) else _response(request, model, result)
        for request, result in zip(requests, results, strict=True)
    ]


def send(requests: Sequence[Any], responses: Sequence[Any]) -> None:
    """Sends each request its one response, from any thread. For requests that `execute` took without answering them."""
    for request, response in zip(requests, responses, strict=True):
        request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _unexpected(error: Exception) -> InternalError:
    name = type(error).__name__
    logging.getLogger(__name__).error("execution failed: %s", name)
    return InternalError(f"The model failed ({name}).")


def _response(request: Any, model: Model, outputs: Outputs) -> Any:
    wanted = set(request.requested_output_names())
    tensors = [
        pb_utils.Tensor(tensor.name, _array(outputs[tensor.name], tensor.dtype, len(tensor.dims)))
        for tensor in model.outputs
        if tensor.name in wanted and tensor.name in outputs
    ]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _array(value: Any, dtype: Dtype, rank: int) -> npt.NDArray[Any]:
    """`value` as an array with a leading batch dimension of 1; strings as UTF-8."""
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
    elif isinstance(error, Abandoned):
        code = kind.CANCELLED
    # The frames of the traceback refer to the request and to the error itself. That circle would keep the request alive
    # until the garbage collector runs.
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return pb_utils.InferenceResponse(error=kind(error.wire_text(), code))


def publish(counted: Sequence[metrics.Metric]) -> Callable[[], None]:
    """Shows the metrics at Triton's metrics endpoint until the returned function is called. Does nothing if the
    endpoint is off."""
    try:
        return MetricsEndpoint(counted, _new_family).close
    except pb_utils.TritonModelException:
        return lambda: None


def _new_family(sample: metrics.Sample) -> Any:
    """Raises TritonModelException if the metrics endpoint is off."""
    family = pb_utils.MetricFamily
    kind = family.COUNTER if sample.kind == "counter" else family.GAUGE
    return family(name=sample.name, description=sample.description, kind=kind)
