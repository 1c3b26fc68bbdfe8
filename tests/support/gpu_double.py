"""A GPU that is not there: NVIDIA's CUDA runtime and TensorRT as the runners call them, over this process's memory.

The engine of the double is the exported graph itself, run by ONNX Runtime at the very addresses that were bound. It is
as strict as the real ones: what they would refuse, or leave undone, fails here.
"""

# ruff: noqa: N802, N815

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from qwen3guard_contract import manifest as contract
from qwen3guard_contract.manifest import GRAPH_INPUT_IDS, GRAPH_LOGIT_INDEX, GRAPH_POSITIONS, Manifest

INPUTS = (GRAPH_INPUT_IDS, GRAPH_POSITIONS, GRAPH_LOGIT_INDEX)
VERSION = "1.7.1.116"


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2


OK = (Error.cudaSuccess,)


@dataclass
class Runtime:
    """cuda.bindings.runtime. `blocks` are what was allocated; `limit` bytes are all that there is."""

    limit: int = 1 << 30
    major: int = 8
    minor: int = 6
    blocks: dict[int, np.ndarray] = field(default_factory=dict)
    capturing: list[Callable[[], None]] | None = None
    launched: int = 0
    queued: list[Callable[[], object]] = field(default_factory=list)
    """On the stream, for whatever comes next on it, or waits for it. ONNX Runtime's passes do neither."""
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def taken(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())

    def is_ours(self, address: int, size: int) -> bool:
        return any(start <= address and address + size <= start + block.nbytes for start, block in self.blocks.items())

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        return OK if device == 0 else (Error.cudaErrorInvalidValue,)

    def cudaGetDeviceProperties(self, _: int) -> tuple[Any, ...]:
        return *OK, SimpleNamespace(major=self.major, minor=self.minor)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return *OK, self.limit - self.taken(), self.limit

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        return *OK, 7

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if self.taken() + size > self.limit:
            return Error.cudaErrorMemoryAllocation, 0
        block = np.full(size, 255, np.uint8)  # what a device's memory holds: NaN in every float type
        self.blocks[block.ctypes.data] = block
        return *OK, block.ctypes.data

    def next_on_stream(self) -> None:
        while self.queued:
            self.queued.pop(0)()

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[Any, ...]:
        assert stream == 7
        assert self.capturing is None
        assert self.is_ours(address, size)
        self.queued.append(partial(ctypes.memset, address, value, size))
        return OK

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        assert stream == 7
        assert self.capturing is None, "a copy from pageable memory cannot be captured"
        assert self.is_ours(target if kind == 1 else source, size)
        self.next_on_stream()
        ctypes.memmove(target, source, size)
        return OK

    def cudaMemcpy2DAsync(self, *arguments: int) -> tuple[Any, ...]:
        target, target_pitch, source, source_pitch, width, height, kind, _ = arguments
        assert kind == 3
        assert width <= min(target_pitch, source_pitch)
        self.next_on_stream()
        for row in range(height):
            assert self.is_ours(target + row * target_pitch, width)
            assert self.is_ours(source + row * source_pitch, width)
            ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)
        return OK

    def cudaStreamSynchronize(self, _: int) -> tuple[Any, ...]:
        assert self.capturing is None
        self.next_on_stream()
        return OK

    def cudaStreamBeginCapture(self, _: int, mode: int) -> tuple[Any, ...]:
        assert mode == 1
        self.capturing = []
        return OK

    def cudaStreamEndCapture(self, _: int) -> tuple[Any, ...]:
        graph, self.capturing = self.capturing, None
        return *OK, graph

    def cudaGraphInstantiate(self, graph: list[Callable[[], None]], _: int) -> tuple[Any, ...]:
        return *OK, list(graph)

    def cudaGraphDestroy(self, _: Any) -> tuple[Any, ...]:
        return OK

    def cudaGraphLaunch(self, graph: list[Callable[[], None]], _: int) -> tuple[Any, ...]:
        self.launched += 1
        self.next_on_stream()
        for launch in graph:
            launch()
        return OK


class Context:
    """IExecutionContext. A graph that is captured keeps the shapes and addresses of that moment."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.seen: set[tuple[Any, ...]] = set()
        self.is_recorded = False

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        assert stream == 7
        self.profile = described(self.engine.manifest).profiles[number]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        profile = self.profile
        most = {
            GRAPH_INPUT_IDS: (profile.rows, profile.tokens),
            GRAPH_POSITIONS: (profile.rows,),
            GRAPH_LOGIT_INDEX: (profile.asked, 2),
        }
        for size, limit in zip(shape, most.get(name, (profile.rows, *shape[1:])), strict=True):
            assert 1 <= size <= limit, f"{name} {shape} is outside the profile"
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert self.engine.cuda.is_ours(address, 1)
        self.addresses[name] = address
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        assert self.engine.cuda.is_ours(address, size)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        assert not self.is_recorded, "a recorded context must be left as it was"
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        key = (tuple(shapes[name] for name in INPUTS), tuple(sorted(addresses.items())))
        if self.engine.cuda.capturing is None:
            self.seen.add(key)
            self.engine.cuda.next_on_stream()
            self.engine.run(shapes, addresses)
        else:
            assert key in self.seen, "TensorRT cannot be captured before it has met a shape"
            self.is_recorded = True
            self.engine.cuda.capturing.append(lambda: self.engine.run(shapes, addresses))
        return True


def described(manifest: Manifest) -> contract.Engine:
    assert manifest.engine is not None
    return manifest.engine


class Engine:
    """ICudaEngine: the portable graph beside the engine's file."""

    def __init__(self, folder: Path, manifest: Manifest, cuda: Runtime) -> None:
        self.manifest, self.cuda = manifest, cuda
        self.runs = 0
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self._widths = {output.name: output.shape[-1] for output in self._session.get_outputs()}

    device_memory_size_v2 = 4096

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "user managed"
        return Context(self)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, self._widths[name])

    def run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        self.runs += 1
        binding = self._session.io_binding()
        for name in INPUTS:
            binding.bind_input(name, "cpu", 0, np.int64, shapes[name], addresses[name])
        rows, capacity = shapes[GRAPH_INPUT_IDS][0], described(self.manifest).capacity
        for cache in self.manifest.caches:
            assert addresses[cache.past] == addresses[cache.present], "a cache must be written in place"
            place = ("cpu", 0, cache.numpy, (rows, *cache.shape(capacity)))
            binding.bind_input(cache.past, *place, addresses[cache.past])
            binding.bind_output(cache.present, *place, addresses[cache.present])
        for name in self.manifest.outputs:
            shape = (shapes[GRAPH_LOGIT_INDEX][0], self._widths[name])
            binding.bind_output(name, "cpu", 0, np.float32, shape, addresses[name])
        self._session.run_with_iobinding(binding)


def tensorrt(folder: Path, manifest: Manifest, cuda: Runtime, *, version: str = VERSION, reads: bool = True) -> Any:
    """The module tensorrt_rtx; `reads` is whether it can load the engine."""

    class Logger:
        ERROR = 1

        def __init__(self, _: int) -> None: ...

    class RuntimeOfEngines:
        def __init__(self, _: Logger) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            assert plan == (folder / described(manifest).file).read_bytes()
            return Engine(folder, manifest, cuda) if reads else None

    return SimpleNamespace(
        __name__="tensorrt_rtx",
        __version__=version,
        Logger=Logger,
        Runtime=RuntimeOfEngines,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )
