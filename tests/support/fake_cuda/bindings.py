"""cuda.bindings.runtime over the CUDA runtime of this folder: the calls that the runners make, with NVIDIA's results.

NVIDIA's own module brings a CUDA runtime along and would look for a driver.
"""

# ruff: noqa: N802, N815

from __future__ import annotations

import ctypes
from enum import IntEnum
from types import SimpleNamespace
from typing import Any


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900


RESULTS: dict[str, Any] = {
    "cudaGetDeviceCount": ctypes.c_int,
    "cudaStreamCreate": ctypes.c_void_p,
    "cudaMalloc": ctypes.c_void_p,
    "cudaHostAlloc": ctypes.c_void_p,
}
"""The type of the result of each function that has one; CUDA returns it by its first argument."""


class Bindings:
    """Every function returns its error and then its results."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._library, name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            numbers = [ctypes.c_size_t(int(argument)) for argument in arguments]
            if name not in RESULTS:
                return (Error(function(*numbers)),)
            result = RESULTS[name]()
            error = Error(function(ctypes.byref(result), *numbers))
            return error, result.value or 0

        return call

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        error = Error(self._library.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)))
        return error, free.value, total.value

    def cudaGetDeviceProperties(self, _: int) -> tuple[Any, ...]:
        return Error.cudaSuccess, SimpleNamespace(major=9, minor=0)
