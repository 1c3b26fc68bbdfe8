"""The part of NVIDIA's CUDA runtime that the runners use: memory, copies, one stream, and recorded graphs of launches.

Each method calls the function of NVIDIA's runtime that it names (docs.nvidia.com/cuda/cuda-runtime-api). A failure is a
DeviceError with the name of CUDA's error. `bindings` is the module cuda.bindings.runtime, or a double of it.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import DeviceError
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.slots import PAGE_CELLS

from qwen3guard_runtime.engine.kv_cache import Arena, Slot

Address = int
_of_thread = threading.local()
"""CUDA's current device is that of a thread: `device` has the runtime and the device that a thread has set."""


def bindings() -> Any:
    """Imports cuda.bindings.runtime. Raises DeviceError if it is not installed or finds no device."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        raise DeviceError("There is no CUDA here: pip install 'cuda-bindings>=12.9,<14'.") from None
    error, count = runtime.cudaGetDeviceCount()
    if int(error) or not count:
        raise DeviceError(f"CUDA finds no device ({error.name}).")
    return runtime


class Cuda:
    """One device with one stream. Addresses are addresses of the device; sizes are in bytes. Any thread may call."""

    def __init__(self, bindings: Any, device: int = 0) -> None:
        self._cuda = bindings
        self.device = device
        self.stream = int(self._call("cudaStreamCreate"))

    def _call(self, name: str, *arguments: Any) -> Any:
        if getattr(_of_thread, "device", None) != (self._cuda, self.device):
            (error,) = self._cuda.cudaSetDevice(self.device)
            if int(error):
                raise DeviceError(f"cudaSetDevice failed: {error.name}.")
            _of_thread.device = (self._cuda, self.device)
        error, *results = getattr(self._cuda, name)(*arguments)
        if int(error):
            raise DeviceError(f"{name} failed: {error.name}.")
        return results[0] if results else None

    def capability(self) -> str:
        """The device's compute capability, such as 8.6."""
        properties = self._call("cudaGetDeviceProperties", self.device)
        return f"{properties.major}.{properties.minor}"

    def free_bytes(self) -> int:
        return int(self._call("cudaMemGetInfo"))

    def is_broken(self) -> bool:
        """Whether the device answers every call with an error. After an illegal access, say, nothing in this process
        can use it again."""
        try:
            self._call("cudaMemGetInfo")
            self.synchronize()
        except DeviceError:
            return True
        return False

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Host memory that the device copies from and to without a detour, kept until the process ends."""
        address = int(self._call("cudaHostAlloc", size, 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def zeros(self, size: int) -> Address:
        """Allocates zeroed memory, which is kept until the process ends. Every stream sees the zeros when this
        returns."""
        address = int(self._call("cudaMalloc", size))
        self.clear(address, size)
        self.synchronize()
        return address

    def clear(self, address: Address, size: int) -> None:
        """Queues on the stream to set `size` bytes to 0."""
        self._call("cudaMemsetAsync", address, 0, size, self.stream)

    def upload(self, target: Address, array: npt.NDArray[Any]) -> None:
        """Queues a copy of `array` to the device on the stream. It must be contiguous, and live until `synchronize`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: npt.NDArray[Any], source: Address) -> None:
        """Queues a copy from the device on the stream. `array` is filled when `synchronize` returns."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, source, array.nbytes, kind, self.stream)

    def copy_rows(
        self, target: Address, target_pitch: int, source: Address, source_pitch: int, *, rows: int, width: int
    ) -> None:
        """Queues a copy of `rows` pieces of `width` bytes each on the stream, within the device. The pieces begin
        `source_pitch` and `target_pitch` bytes apart."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, rows, kind, self.stream)

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def record(self, launches: Callable[[], None]) -> Recording:
        """Records what `launches` queues on the stream as one CUDA graph, without running it."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            launches()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            return Recording(self, self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)


class Recording:
    """A CUDA graph that can be queued again and again, until it is destroyed."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        self._cuda = cuda
        self._executable = executable

    def launch(self) -> None:
        self._cuda._call("cudaGraphLaunch", self._executable, self._cuda.stream)

    def destroy(self) -> None:
        self._cuda._call("cudaGraphExecDestroy", self._executable)


class DeviceArena(Arena):
    """Slots in a device's memory, which is allocated at once and zeroed. Behind paged slots stands one more page, where
    rows of no slot write."""

    def __init__(self, cuda: Cuda, manifest: Manifest, rows: int, capacity: int) -> None:
        super().__init__(manifest, rows, capacity)
        self._cuda = cuda
        spare = PAGE_CELLS if manifest.form.is_paged else 0
        self._starts = [cuda.zeros(rows * cache.row_bytes(capacity) + cache.row_bytes(spare)) for cache in self.caches]

    def address(self, number: int, row: int) -> Address:
        return self._starts[number] + row * self.caches[number].row_bytes(self.capacity)

    def _clear(self, row: int) -> None:
        """Waits until the cells are 0, because ONNX Runtime runs its passes on other streams."""
        for number, cache in enumerate(self.caches):
            self._cuda.clear(self.address(number, row), cache.row_bytes(self.capacity))
        self._cuda.synchronize()

    def copy(self, row: int, target: Slot, tokens: int) -> None:
        for number, cache in enumerate(self.caches):
            pieces = math.prod(cache.shape(1)[: cache.cell_axis - 1])  # each of all cells
            cell_bytes = cache.row_bytes(1) // pieces
            self._cuda.copy_rows(
                target.arena.address(number, target.row),
                target.arena.capacity * cell_bytes,
                self.address(number, row),
                self.capacity * cell_bytes,
                rows=pieces,
                width=tokens * cell_bytes,
            )
        self._cuda.synchronize()


class DeviceMemory:
    """A device's memory. It is allocated at once for all slots, so all slots have the same capacity."""

    def __init__(self, cuda: Cuda, capacity: int) -> None:
        self._cuda = cuda
        self._capacity = capacity

    def capacities(self, context: int) -> Sequence[int]:  # noqa: ARG002
        return [self._capacity]

    def arena(self, manifest: Manifest, rows: int, capacity: int) -> Arena:
        return DeviceArena(self._cuda, manifest, rows, capacity)

    def free_bytes(self) -> int:
        return self._cuda.free_bytes()
