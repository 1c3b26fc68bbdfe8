"""Runs a TensorRT engine over KV slots in device memory.

The engine writes each cache in place: past and present have the same address. Passes are queued on one stream, so all
contexts can share one scratch memory. A decode step, a pass with one token for each row, is recorded as a CUDA graph
when it runs over the same slots again. `package` is the module tensorrt or tensorrt_rtx, which have the same API.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from qwen3guard_contract.errors import CorruptFile, EngineMismatch, ExportMissing
from qwen3guard_contract.manifest import GRAPH_INPUT_IDS, GRAPH_LOGIT_INDEX, GRAPH_POSITIONS, Engine, Manifest, Profile

from qwen3guard_runtime.engine.cuda import Cuda
from qwen3guard_runtime.engine.kv_cache import Arena, Ids
from qwen3guard_runtime.engine.runner import Logits, Passes, PassLimits

GRAPHS = 32
"""The number of recorded decode steps that are kept. Each is for one range of slots, and has its own context."""


class TensorRTRunner(Passes):
    """One engine, with a context for each of its profiles. Raises ExportMissing, EngineMismatch or CorruptFile."""

    def __init__(self, folder: Path, manifest: Manifest, cuda: Cuda, package: ModuleType) -> None:
        engine = manifest.engine
        if engine is None or not (folder / engine.file).is_file():
            raise ExportMissing(f"{folder} holds no TensorRT engine: export with --tensorrt.")
        check_engine(engine, package, cuda.capability())
        self._cuda = cuda
        self._profiles = engine.profiles
        self._runtime = package.Runtime(package.Logger(package.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine((folder / engine.file).read_bytes())
        if self._engine is None:
            raise CorruptFile(f"{folder / engine.file} cannot be loaded by {package.__name__} {package.__version__}.")
        self._strategy = package.ExecutionContextAllocationStrategy.USER_MANAGED
        self._scratch_bytes = int(self._engine.device_memory_size_v2)
        self._scratch = cuda.zeros(max(self._scratch_bytes, 1))
        self._contexts = [self._context(number) for number in range(len(self._profiles))]
        self._widths = {name: int(self._engine.get_tensor_shape(name)[-1]) for name in manifest.outputs}
        largest = Profile(*(max(sizes) for sizes in zip(*map(_sizes, self._profiles), strict=True)))
        self._buffers = {
            GRAPH_INPUT_IDS: cuda.zeros(8 * max(profile.rows * profile.tokens for profile in self._profiles)),
            GRAPH_POSITIONS: cuda.zeros(8 * largest.rows),
            GRAPH_LOGIT_INDEX: cuda.zeros(8 * 2 * largest.asked),
        } | {name: cuda.zeros(4 * width * largest.asked) for name, width in self._widths.items()}
        self._decode = lru_cache(GRAPHS)(self._new_decode)
        step = self._profiles[0]
        super().__init__(
            PassLimits(
                shared_tokens=step.tokens, chunk_tokens=self._profiles[-1].tokens, rows=step.rows, asked=step.asked
            )
        )

    def _context(self, number: int) -> Any:
        """Makes a context for the profile `number`."""
        context = self._engine.create_execution_context(self._strategy)
        context.set_device_memory(self._scratch, self._scratch_bytes)
        context.set_optimization_profile_async(number, self._cuda.stream)
        self._cuda.synchronize()
        return context

    def _new_decode(self, *_: object) -> _Decode:
        return _Decode(self._context(0))

    def _pass(self, arena: Arena, first: int, ids: Ids, positions: Ids, index: Ids) -> Logits:
        rows, tokens = ids.shape
        for name, array in ((GRAPH_INPUT_IDS, ids), (GRAPH_POSITIONS, positions), (GRAPH_LOGIT_INDEX, index)):
            self._cuda.upload(self._buffers[name], array)
        if tokens == 1 and len(index) == rows:
            decode = self._decode(arena, first, rows)
            decode.launch(self._cuda, lambda: self._enqueue(decode.context, arena, first, ids, index))
        else:
            context = self._contexts[0 if tokens <= self._profiles[0].tokens else -1]
            self._enqueue(context, arena, first, ids, index)
        outputs = [np.empty((len(index), width), np.float32) for width in self._widths.values()]
        for name, output in zip(self._widths, outputs, strict=True):
            self._cuda.download(output, self._buffers[name])
        self._cuda.synchronize()
        return tuple(outputs)

    def _enqueue(self, context: Any, arena: Arena, first: int, ids: Ids, index: Ids) -> None:
        rows = len(ids)
        for name, shape in ((GRAPH_INPUT_IDS, ids.shape), (GRAPH_POSITIONS, (rows,)), (GRAPH_LOGIT_INDEX, index.shape)):
            context.set_input_shape(name, shape)
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer)
        for number, cache in enumerate(arena.caches):
            context.set_input_shape(cache.past, (rows, *cache.shape(arena.capacity)))
            context.set_tensor_address(cache.past, arena.address(number, first))
            context.set_tensor_address(cache.present, arena.address(number, first))
        if not context.execute_async_v3(self._cuda.stream):
            raise RuntimeError("TensorRT could not queue the pass")


class _Decode:
    """A decode step for one range of slots. It is queued normally the first time, recorded the second time, and then
    replayed.

    A recording depends on its context, so nothing else may use that context.
    """

    def __init__(self, context: Any) -> None:
        self.context = context
        self._runs = 0
        self._graph: Callable[[], None] | None = None

    def launch(self, cuda: Cuda, enqueue: Callable[[], None]) -> None:
        self._runs += 1
        if self._runs == 1:
            enqueue()  # when TensorRT first meets a shape, it does work that cannot be recorded
            return
        if self._graph is None:
            self._graph = cuda.record(enqueue)
        self._graph()


def check_engine(engine: Engine, package: ModuleType, capability: str) -> None:
    """Raises EngineMismatch if another package or version built `engine`, or if it is for other GPUs."""
    if (engine.package, engine.version) != (package.__name__, package.__version__):
        raise EngineMismatch(
            f"The engine was built by {engine.package} {engine.version}, and here is {package.__name__} "
            f"{package.__version__}: export again with --tensorrt."
        )
    if capability not in engine.compute_capabilities:
        raise EngineMismatch(
            f"The engine was built for compute capability {', '.join(engine.compute_capabilities)}, and this GPU has "
            f"{capability}: export again with --tensorrt."
        )


def _sizes(profile: Profile) -> tuple[int, int, int]:
    return profile.rows, profile.tokens, profile.asked
