"""NVIDIA's CUDA runtime as the runners use it: memory, copies, one stream, and recorded graphs of launches.

Each call is NVIDIA's own by the same name (docs.nvidia.com/cuda/cuda-runtime-api); a failure is a DeviceError with the
code's name. `bindings` is the module cuda.bindings.runtime, or a double of it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
from qwen3guard_contract.errors import DeviceError
from qwen3guard_contract.manifest import Manifest

from qwen3guard_runtime.engine.kv_cache import Arena, Slot

Address = int


def bindings() -> Any:
    """cuda.bindings.runtime. Raises DeviceError where it is not installed or finds no device."""
    try:
        found = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        raise DeviceError("There is no CUDA here: pip install cuda-bindings.") from None
    error, count = found.cudaGetDeviceCount()
    if int(error) or not count:
        raise DeviceError(f"CUDA finds no device ({error.name}).")
    return found


class Cuda:
    """One device with one stream. Addresses are the device's, sizes bytes."""

    def __init__(self, bindings: Any, device: int = 0) -> None:
        self._cuda = bindings
        self._call("cudaSetDevice", device)
        self.stream = int(self._call("cudaStreamCreate"))

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *results = getattr(self._cuda, name)(*arguments)
        if int(error):
            raise DeviceError(f"{name} failed: {error.name}.")
        return results[0] if results else None

    def capability(self) -> str:
        """The device's compute capability, such as 8.6."""
        properties = self._call("cudaGetDeviceProperties", 0)
        return f"{properties.major}.{properties.minor}"

    def free_bytes(self) -> int:
        return int(self._call("cudaMemGetInfo"))

    def zeros(self, size: int) -> Address:
        """Memory that is kept until the process ends; its zeros are there for every stream."""
        address = int(self._call("cudaMalloc", size))
        self.clear(address, size)
        self.synchronize()
        return address

    def clear(self, address: Address, size: int) -> None:
        """Zeros, queued on the stream."""
        self._call("cudaMemsetAsync", address, 0, size, self.stream)

    def upload(self, target: Address, array: npt.NDArray[Any]) -> None:
        """Queued on the stream; `array`, contiguous, must live until `synchronize`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: npt.NDArray[Any], source: Address) -> None:
        """Queued on the stream; `array` is filled once `synchronize` returns."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, source, array.nbytes, kind, self.stream)

    def copy_rows(
        self, target: Address, target_pitch: int, source: Address, source_pitch: int, *, rows: int, width: int
    ) -> None:
        """`rows` stretches of `width` bytes, `pitch` bytes apart, on the device; queued on the stream."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, rows, kind, self.stream)

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def record(self, launches: Callable[[], None]) -> Callable[[], None]:
        """What `launches` queues on the stream, recorded as one CUDA graph without being run; a call queues it."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            launches()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        ready = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return lambda: self._call("cudaGraphLaunch", ready, self.stream)


class DeviceArena(Arena):
    """Slots in a device's memory, taken as a whole and zeroed."""

    def __init__(self, cuda: Cuda, manifest: Manifest, rows: int, capacity: int) -> None:
        super().__init__(manifest, rows, capacity)
        self._cuda = cuda
        self._starts = [cuda.zeros(rows * cache.row_bytes(capacity)) for cache in self.caches]

    def address(self, number: int, row: int) -> Address:
        return self._starts[number] + row * self.caches[number].row_bytes(self.capacity)

    def _clear(self, row: int) -> None:
        """Waits for its zeros: ONNX Runtime's passes are on streams of its own."""
        for number, cache in enumerate(self.caches):
            self._cuda.clear(self.address(number, row), cache.row_bytes(self.capacity))
        self._cuda.synchronize()

    def copy(self, row: int, target: Slot, tokens: int) -> None:
        for number, cache in enumerate(self.caches):
            before = math.prod(cache.shape(1)[: cache.cell_axis - 1])
            after = cache.row_bytes(1) // before
            self._cuda.copy_rows(
                target.arena.address(number, target.row),
                target.arena.capacity * after,
                self.address(number, row),
                self.capacity * after,
                rows=before,
                width=tokens * after,
            )
        self._cuda.synchronize()


class DeviceMemory:
    """A device's memory, where all of a cache is taken at once: slots of one capacity."""

    def __init__(self, cuda: Cuda, capacity: int) -> None:
        self._cuda = cuda
        self._capacity = capacity

    def capacities(self, context: int) -> Sequence[int]:  # noqa: ARG002
        return [self._capacity]

    def arena(self, manifest: Manifest, rows: int, capacity: int) -> Arena:
        return DeviceArena(self._cuda, manifest, rows, capacity)

    def free_bytes(self) -> int:
        return self._cuda.free_bytes()
