"""Runs a TensorRT engine over KV slots in device memory.

The engine writes each cache in place: past and present have the same address. Passes are queued on one stream, so all
contexts can share one scratch memory. A decode step, a pass with one token for each row, is recorded as a CUDA graph
when it comes back to the same slots. `package` is the module tensorrt or tensorrt_rtx, which have the same API.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from qwen3guard_contract.errors import CorruptFile, DeviceError, EngineMismatch, ExportMissing
from qwen3guard_contract.manifest import (
    GRAPH_CANDIDATES,
    GRAPH_INPUT_IDS,
    GRAPH_LOGIT_INDEX,
    GRAPH_POSITIONS,
    Engine,
    Manifest,
    Profile,
)

from qwen3guard_runtime.engine.cuda import Cuda, Recording
from qwen3guard_runtime.engine.kv_cache import Arena, Ids
from qwen3guard_runtime.engine.runner import Logits, Passes, PassLimits

GRAPHS = 32
"""The most recorded decode steps. Each is for one range of slots, and has its own context."""
RECORDED_USE = 3
IDLE_STEPS = 8 * GRAPHS
"""A recording that was not used for this many steps may make room for another. With more ranges in turn than there are
recordings, the others run as they are; replacing them would record in every step."""
COUNTED_PLACES = 1024


class TensorRTRunner(Passes):
    """One engine, with a context for each of its profiles.

    `candidates` are the ids of a Gen graph's input of that name. Raises ExportMissing, EngineMismatch or CorruptFile.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        cuda: Cuda,
        package: ModuleType,
        candidates: Sequence[int] = (0,),
    ) -> None:
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
        self._candidates = np.array(candidates if manifest.variant == "gen" else (), np.int32)
        widths = {name: int(self._engine.get_tensor_shape(name)[-1]) for name in manifest.outputs}
        self._widths = {name: len(self._candidates) if width < 0 else width for name, width in widths.items()}
        largest = Profile(*(max(sizes) for sizes in zip(*map(_sizes, self._profiles), strict=True)))
        self._buffers = {
            GRAPH_INPUT_IDS: cuda.zeros(8 * max(profile.rows * profile.tokens for profile in self._profiles)),
            GRAPH_POSITIONS: cuda.zeros(8 * largest.rows),
            GRAPH_LOGIT_INDEX: cuda.zeros(8 * 2 * largest.asked),
        } | {name: cuda.zeros(4 * width * largest.asked) for name, width in self._widths.items()}
        if self._candidates.size:
            self._buffers[GRAPH_CANDIDATES] = cuda.zeros(self._candidates.nbytes)
            cuda.upload(self._buffers[GRAPH_CANDIDATES], self._candidates)
            cuda.synchronize()
        self._steps = _Steps(cuda, self._contexts[0], lambda: self._context(0))
        step = self._profiles[0]
        super().__init__(
            PassLimits(
                shared_tokens=step.tokens, chunk_tokens=self._profiles[-1].tokens, rows=step.rows, asked=step.asked
            )
        )

    def _context(self, number: int) -> Any:
        """Makes a context for the profile `number`."""
        context = self._engine.create_execution_context(self._strategy)
        if context is None:
            raise DeviceError("TensorRT cannot make an execution context: the GPU's memory may be full.")
        context.set_device_memory(self._scratch, self._scratch_bytes)
        _accepted(context.set_optimization_profile_async(number, self._cuda.stream), f"profile {number}")
        self._cuda.synchronize()
        return context

    def _pass(self, arena: Arena, first: int, ids: Ids, positions: Ids, index: Ids) -> Logits:
        rows, tokens = ids.shape
        for name, array in ((GRAPH_INPUT_IDS, ids), (GRAPH_POSITIONS, positions), (GRAPH_LOGIT_INDEX, index)):
            self._cuda.upload(self._buffers[name], array)
        if tokens == 1 and len(index) == rows:
            self._steps.run((arena, first, rows), lambda context: self._enqueue(context, arena, first, ids, index))
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
        shapes: dict[str, tuple[int, ...]] = {
            GRAPH_INPUT_IDS: ids.shape,
            GRAPH_POSITIONS: (rows,),
            GRAPH_LOGIT_INDEX: index.shape,
        }
        if self._candidates.size:
            shapes[GRAPH_CANDIDATES] = self._candidates.shape
        addresses = dict(self._buffers)
        for number, cache in enumerate(arena.caches):
            shapes[cache.past] = (rows, *cache.shape(arena.capacity))
            addresses[cache.past] = addresses[cache.present] = arena.address(number, first)
        for name, shape in shapes.items():
            _accepted(context.set_input_shape(name, shape), f"the shape {shape} of {name}")
        for name, address in addresses.items():
            _accepted(context.set_tensor_address(name, address), f"the address of {name}")
        _accepted(context.execute_async_v3(self._cuda.stream), "the pass")


def _accepted(is_accepted: bool, what: str) -> None:
    """TensorRT's calls return False where they fail, and a pass would then run with what was set before."""
    if not is_accepted:
        raise RuntimeError(f"TensorRT does not take {what}")


_Place = tuple[Arena, int, int]
"""An arena, its first slot of a step, and the number of slots."""
Enqueue = Callable[[Any], None]
"""Queues a step in an execution context."""


class _Steps:
    """Runs decode steps, and records those whose place comes again."""

    def __init__(self, cuda: Cuda, shared: Any, new_context: Callable[[], Any]) -> None:
        self._cuda = cuda
        self._shared = shared
        self._new_context = new_context
        self._uses: OrderedDict[_Place, int] = OrderedDict()
        self._recorded: OrderedDict[_Place, _Recorded] = OrderedDict()
        self._count = 0

    def run(self, place: _Place, enqueue: Enqueue) -> None:
        self._count += 1
        recorded = self._recorded.get(place) or self._new(place)
        if recorded is None:
            enqueue(self._shared)
            return
        recorded.used = self._count
        self._recorded.move_to_end(place)
        if recorded.graph:
            recorded.graph.launch()
        elif recorded.is_warm:
            recorded.graph = self._cuda.record(lambda: enqueue(recorded.context))
            recorded.graph.launch()
        else:
            enqueue(recorded.context)  # when a context first meets a shape, it does work that cannot be recorded
            recorded.is_warm = True

    def _new(self, place: _Place) -> _Recorded | None:
        """What will be recorded for a place that comes often enough, if there is room."""
        self._uses[place] = self._uses.pop(place, 0) + 1
        if len(self._uses) > COUNTED_PLACES:
            self._uses.popitem(last=False)
        if self._uses[place] < RECORDED_USE:
            return None
        if len(self._recorded) == GRAPHS:
            oldest, recorded = next(iter(self._recorded.items()))
            if self._count - recorded.used < IDLE_STEPS:
                return None
            del self._recorded[oldest]
            self._uses.pop(oldest, None)
            if recorded.graph:
                recorded.graph.destroy()
        self._recorded[place] = _Recorded(self._new_context())
        return self._recorded[place]


@dataclass
class _Recorded:
    """The recording of one place, which depends on its `context`: nothing else may use that. `used` is the number of
    its last step."""

    context: Any
    used: int = 0
    is_warm: bool = False
    graph: Recording | None = None


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
