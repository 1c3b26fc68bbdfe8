"""Between Triton's requests and plain arrays: the only module here that imports triton_python_backend_utils.

Every request is answered on its own: a wrong one gets its error, and the others of its batch go on.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from qwen3guard_contract.errors import GuardError, InputError, InternalError, InvalidRequest, Overloaded, SessionLost
from qwen3guard_contract.wire import NUMPY_DTYPES, Dtype, Model

from qwen3guard_runtime.request import Handler, Outputs, Request
from qwen3guard_runtime.telemetry import logs, metrics

START, END = 1, 2


@contextmanager
def loading() -> Iterator[None]:
    """Around what loads a model: a GuardError that stops it stands in the server's log in its wire form, as a line.

    Triton writes the exception too, escaped and with its traceback, and error lines of its own after it.
    """
    try:
        yield
    except GuardError as error:
        sys.stderr.write(f"{error.wire_text()}\n")
        sys.stderr.flush()
        raise


def serve(requests: Sequence[Any], model: Model, handle: Handler, refusals: RefusalLog) -> list[Any]:
    """Triton responses for Triton requests: `handle` sees those that are well-formed, `refusals` those that failed."""
    began = time.monotonic()
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
    except GuardError as error:
        handled = iter([error] * len(parsed))
    except Exception as error:
        logging.getLogger(__name__).error("execution failed: %s", type(error).__name__)
        handled = iter([InternalError(f"The model failed ({type(error).__name__}).")] * len(parsed))
    results = [result if isinstance(result, GuardError) else next(handled) for result in results]
    seconds = time.monotonic() - began
    for request, result in zip(requests, results, strict=True):
        if isinstance(result, GuardError):
            refusals.note(request, result, seconds)
    return [
        _error(result) if isinstance(result, GuardError) else _response(request, model, result)
        for request, result in zip(requests, results, strict=True)
    ]


def send(requests: Sequence[Any], responses: Sequence[Any]) -> None:
    """Answers requests that were taken before, from any thread; each gets its one response."""
    for request, response in zip(requests, responses, strict=True):
        request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _parse(request: Any, model: Model) -> Request:
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
    flags = request.flags()
    return Request(
        tensors,
        frozenset(request.requested_output_names()),
        request.correlation_id(),
        bool(flags & START),
        bool(flags & END),
    )


def _read(tensor: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(tensor.as_numpy())
    except Exception as error:
        raise InvalidRequest(f"{tensor.name()} cannot be read ({type(error).__name__}).") from None


def _fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(dim in (-1, size) for size, dim in zip(shape, dims, strict=True))


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
    # Its frames hold the request, and the results that hold it: a circle that lives until the garbage collector runs.
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return pb_utils.InferenceResponse(error=kind(error.wire_text(), code))


def model_folder(args: Mapping[str, str]) -> Path:
    """The version folder that holds model.py and the exported files."""
    return Path(args["model_repository"]) / args["model_version"]


def parameters(args: Mapping[str, str]) -> dict[str, str]:
    """The `parameters` of config.pbtxt."""
    found = json.loads(args["model_config"])["parameters"]
    return {name: str(value["string_value"]) for name, value in found.items()}


class RefusalLog:
    """Counts the requests of one model that are answered with an error, and writes them to the log if there is one."""

    def __init__(self, model: Model) -> None:
        self.metric = metrics.Refusals(model.name)
        self._log = logs.failure_log(model.name)
        self._lock = threading.Lock()

    def note(self, request: Any, error: GuardError, seconds: float) -> None:
        """From any thread."""
        with self._lock:
            self.metric.count(error)
            if self._log:
                request_id = logs.safe_request_id(request.request_id(), request.correlation_id())
                self._log.write(error.code, request_id, seconds)


FLUSH_S = 1.0


class Endpoint:
    """Triton's metrics endpoint: each call goes to the server and back, so what has changed is told once a second."""

    def __init__(self, told: Sequence[metrics.Metric]) -> None:
        """Tells everything, and what changes. Raises TritonModelException where the endpoint is off."""
        self._metrics = told
        self._families: dict[str, Any] = {}
        """A family that is let go takes its series along."""
        self._series: dict[tuple[object, ...], Any] = {}
        self._told: dict[tuple[object, ...], float] = {}
        self.flush()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tells the last changes. A series that outlived the model would end its process with a crash."""
        self._closed.set()
        self._thread.join()
        self.flush()
        self._series.clear()
        self._families.clear()

    def flush(self) -> None:
        for metric in self._metrics:
            for sample in metric.samples():
                key = (sample.name, sample.labels)
                if key not in self._series:
                    self._series[key] = self._new(sample)
                change = sample.value - self._told.get(key, 0.0)
                if change and sample.kind == "counter":
                    self._series[key].increment(change)
                elif change:
                    self._series[key].set(sample.value)
                self._told[key] = sample.value

    def _new(self, sample: metrics.Sample) -> Any:
        kind = pb_utils.MetricFamily
        if sample.name not in self._families:
            self._families[sample.name] = kind(
                name=sample.name,
                description=sample.description,
                kind=kind.COUNTER if sample.kind == "counter" else kind.GAUGE,
            )
        return self._families[sample.name].Metric(labels=dict(sample.labels))

    def _keep(self) -> None:
        while not self._closed.wait(FLUSH_S):
            self.flush()


def publish(told: Sequence[metrics.Metric]) -> Callable[[], None]:
    """Brings `told` to Triton's metrics endpoint until the call that is returned; where that is off, does nothing."""
    try:
        return Endpoint(told).close
    except pb_utils.TritonModelException:
        return lambda: None
