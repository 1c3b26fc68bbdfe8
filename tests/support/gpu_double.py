"""A GPU that is not there: NVIDIA's CUDA runtime and TensorRT as the runners call them, over this process's memory.

The engine of the double is the exported graph itself, run by ONNX Runtime at the very addresses that were bound. It is
as strict as the real ones: what they would refuse, or leave undone, fails here.
"""

# ruff: noqa: N802, N815

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from qwen3guard_contract import manifest as contract
from qwen3guard_contract.manifest import GRAPH_INPUT_IDS, GRAPH_LOGIT_INDEX, GRAPH_POSITIONS, Manifest
from qwen3guard_export.proof.on_cpu import run_on_cpu

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
    pinned: list[np.ndarray] = field(default_factory=list)
    capturing: list[Callable[[], None]] | None = None
    launched: int = 0
    graphs: int = 0
    """The recorded graphs that were not destroyed."""
    current: threading.local = field(default_factory=threading.local)
    """The device of the calling thread, which is 0 in a thread that has set none."""
    devices: int = 1
    allocated_on: list[int] = field(default_factory=list)
    """The device of each allocation."""
    queued: list[Callable[[], object]] = field(default_factory=list)
    """On the stream, for whatever comes next on it, or waits for it. ONNX Runtime's passes do neither."""
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def taken(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())

    def is_ours(self, address: int, size: int) -> bool:
        return any(start <= address and address + size <= start + block.nbytes for start, block in self.blocks.items())

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        if not 0 <= device < self.devices:
            return (Error.cudaErrorInvalidValue,)
        self.current.device = device
        return OK

    def cudaGetDeviceProperties(self, _: int) -> tuple[Any, ...]:
        return *OK, SimpleNamespace(major=self.major, minor=self.minor)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return *OK, self.limit - self.taken(), self.limit

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        return *OK, 7

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        self.allocated_on.append(getattr(self.current, "device", 0))
        if self.taken() + size > self.limit:
            return Error.cudaErrorMemoryAllocation, 0
        block = np.full(size, 255, np.uint8)  # what a device's memory holds: NaN in every float type
        self.blocks[block.ctypes.data] = block
        return *OK, block.ctypes.data

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        self.pinned.append(np.full(size, 255, np.uint8))
        return *OK, self.pinned[-1].ctypes.data

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
        self.graphs += 1
        return *OK, list(graph)

    def cudaGraphExecDestroy(self, _: Any) -> tuple[Any, ...]:
        self.graphs -= 1
        return OK

    def cudaGraphDestroy(self, _: Any) -> tuple[Any, ...]:
        return OK

    def cudaGraphLaunch(self, graph: list[Callable[[], None]], _: int) -> tuple[Any, ...]:
        self.launched += 1
        self.next_on_stream()
        for launch in graph:
            launch()
        return OK


class Binding:
    """onnxruntime's IOBinding, whose places on the device are in this process's memory."""

    def __init__(self, session: PagedSession) -> None:
        self.session = session
        self.binding = session.session.io_binding()
        self.places: dict[str, tuple[Any, ...]] = {}

    def bind_input(self, name: str, *place: Any) -> None:
        self._bind(self.binding.bind_input, name, *place)

    def bind_output(self, name: str, *place: Any) -> None:
        self._bind(self.binding.bind_output, name, *place)

    def _bind(self, bind: Callable[..., None], name: str, device: str, *place: Any) -> None:
        assert device == "cuda"
        assert self.session.cuda.is_ours(
            place[3], int(np.prod(place[2])) * (2 if place[1] == 16 else np.dtype(place[1]).itemsize)
        )
        self.places[name] = place
        bind(name, "cpu", *place)

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        assert name == contract.GRAPH_BOUNDS, "anything else would be copied in the pass"
        self.bounds = array.tolist()


class PagedSession:
    """A session of the CUDA provider with a paged graph, which is run on the CPU as its export is proved.

    A pass with a number is recorded when it runs first. What is recorded keeps its sizes and its addresses.
    """

    def __init__(self, cuda: Runtime, path: Path, options: Any, providers: Any) -> None:
        self.cuda, self.providers = cuda, providers
        model = onnx.load(path, load_external_data=False)
        cache = next(value for value in model.graph.input if value.name.startswith("past_"))
        run_on_cpu(model.graph, cache.type.tensor_type.elem_type)
        changed = path.with_name("on-the-cpu.onnx")
        changed.write_bytes(model.SerializeToString())
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        self.session = onnxruntime.InferenceSession(changed, providers=["CPUExecutionProvider"])
        self.recorded: dict[int, dict[str, tuple[Any, ...]]] = {}
        self.replays = 0
        self.get_inputs, self.get_outputs = self.session.get_inputs, self.session.get_outputs
        self.get_modelmeta = self.session.get_modelmeta

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding(self)

    def run_with_iobinding(self, binding: Binding, run: onnxruntime.RunOptions) -> None:
        assert run.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        number = int(run.get_run_config_entry("gpu_graph_id"))
        ids, (rows, _) = binding.places[GRAPH_INPUT_IDS][2], binding.places[contract.GRAPH_PAGES][2]
        assert rows <= ids[0]
        if number in self.recorded:
            assert self.recorded[number] == binding.places, "a recording has other sizes or addresses"
            self.replays += 1
        elif number > 0:
            self.recorded[number] = dict(binding.places)
        self.cuda.next_on_stream()
        self.session.run_with_iobinding(binding.binding)


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
            contract.GRAPH_CANDIDATES: (contract.MOST_CANDIDATES,),
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
        widths = {output.name: output.shape[-1] for output in self._session.get_outputs()}
        self._widths = {name: -1 if isinstance(width, str) else width for name, width in widths.items()}

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
        (candidates,) = shapes.get(contract.GRAPH_CANDIDATES, (0,))
        if candidates:
            name = contract.GRAPH_CANDIDATES
            binding.bind_input(name, "cpu", 0, np.int32, (candidates,), addresses[name])
        for name in self.manifest.outputs:
            width = candidates if self._widths[name] < 0 else self._widths[name]
            shape = (shapes[GRAPH_LOGIT_INDEX][0], width)
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
