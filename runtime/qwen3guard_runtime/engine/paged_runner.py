"""Runs a paged graph on a CUDA device. Rows of any lengths, in any slots, share a pass.

A pass is queued on one stream, which ONNX Runtime uses too: one copy of its inputs, its kernels, one copy of its
outputs. A decode step, a pass with one token for each row, is a CUDA graph that was recorded before the first answer.
Its inputs name the slots, so a recording serves all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from qwen3guard_contract.errors import CorruptFile, DeviceError, ExportMissing, InvalidParameter
from qwen3guard_contract.manifest import (
    GRAPH,
    GRAPH_BOUNDS,
    GRAPH_CANDIDATES,
    GRAPH_INPUT_IDS,
    GRAPH_LOGIT_INDEX,
    GRAPH_PAGES,
    GRAPH_POSITIONS,
    GRAPH_ROW_STARTS,
    Manifest,
)
from qwen3guard_contract.slots import PAGE_CELLS

from qwen3guard_runtime.engine.cuda import Cuda
from qwen3guard_runtime.engine.cuda_session import cuda_session
from qwen3guard_runtime.engine.kv_cache import Arena
from qwen3guard_runtime.engine.paged_buffers import PassBuffers
from qwen3guard_runtime.engine.pieces import PASS_TOKENS, RowPiece, passes
from qwen3guard_runtime.engine.runner import Logits, Row

ONNXRUNTIME_WITH_NORMS = (1, 31)
"""The first version whose paged attention norms queries and keys."""
GEN_OUTPUT_BYTES = 64 << 10
"""The most bytes that a pass of Gen returns, which limits its asked tokens to about a thousand."""
RECORDED_ROWS = (1, 2, 4, 8, 16, 32, 64)
"""The numbers of rows for which a decode step is recorded. A step of fewer rows than these has further ones, of no
slot."""
LONG_CELLS = 1024
"""From this length of its longest row on, a decode step is another recording, which divides a row among more blocks."""
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16, for which numpy has no name
_NOT_RECORDED = -1


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a pass. `longest` is the most tokens of a row, and `least` the fewest cells that its longest row
    reads, or 0 if that is not known."""

    rows: int
    tokens: int
    asked: int
    longest: int
    least: int = 0


class PagedRunner:
    """One session of ONNX Runtime's CUDA provider, over slots in the device's memory.

    `provider` has the operator's options, and `candidates` are the ids of a Gen graph's input of that name. Raises
    ExportMissing, CorruptFile, DeviceError, or InvalidParameter for an option that is the runner's own.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        cuda: Cuda,
        provider: Mapping[str, str],
        candidates: Sequence[int] = (0,),
    ) -> None:
        graph = folder / GRAPH
        if not graph.is_file():
            raise ExportMissing(f"{graph} is missing: export a checkpoint first.")
        if _version() < ONNXRUNTIME_WITH_NORMS:
            wanted = ".".join(map(str, ONNXRUNTIME_WITH_NORMS))
            raise DeviceError(f"Paged attention needs ONNX Runtime {wanted}, and this is {onnxruntime.__version__}.")
        if "user_compute_stream" in provider:
            raise InvalidParameter("The parameter cuda_options has user_compute_stream, which is the runner's own.")
        self._cuda = cuda
        self._records = provider.get("enable_cuda_graph", "1") == "1"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        own = {"enable_cuda_graph": str(int(self._records)), "user_compute_stream": str(cuda.stream)}
        self._session = cuda_session(graph, options, {**provider, **own}, helped=False)
        inputs = [each.name for each in self._session.get_inputs()]
        if not manifest.describes(inputs, self._session.get_modelmeta().custom_metadata_map):
            raise CorruptFile(f"{graph} is not the graph that its manifest describes: export the checkpoint again.")
        outputs = {each.name: each.shape for each in self._session.get_outputs()}
        self._candidates = list(candidates) if GRAPH_CANDIDATES in inputs else []
        widths = {name: outputs[name][-1] for name in manifest.outputs}
        self._widths = {
            name: len(self._candidates) if isinstance(width, str) else width for name, width in widths.items()
        }
        most_asked = GEN_OUTPUT_BYTES // (4 * sum(self._widths.values()))
        self._most_asked = min(PASS_TOKENS, most_asked) if self._candidates else PASS_TOKENS
        self._recorded: dict[tuple[Arena, _Sizes], tuple[int, onnxruntime.IOBinding]] = {}
        self._buffers: dict[Arena, PassBuffers] = {}
        self._bindings: dict[Arena, onnxruntime.IOBinding] = {}

    def forward(self, rows: Sequence[Row]) -> list[Logits]:
        found: dict[int, list[Logits]] = {id(row): [] for row in rows}
        for pieces in passes(rows, self._most_asked):
            for piece, logits in zip(pieces, self._run(pieces), strict=True):
                piece.row.slot.append(piece.ids)
                found[id(piece.row)].append(logits)
        return [tuple(np.concatenate(parts) for parts in zip(*found[id(row)], strict=True)) for row in rows]

    def _run(self, pieces: Sequence[RowPiece]) -> list[Logits]:
        """Runs one pass over the pieces, whose slots are of one arena."""
        slots = [piece.row.slot for piece in pieces]
        arena = slots[0].arena
        if arena not in self._buffers:
            self._open(arena)
        starts = list(accumulate((len(piece.ids) for piece in pieces), initial=0))
        asked = [start + index for start, piece in zip(starts, pieces, strict=False) for index in piece.asked]
        step = self._recorded_step(arena, pieces)
        # All tokens of a recorded step have logits. A pass that only fills the cache asks for one token too, so that no
        # kernel has to support an empty batch.
        sizes = step or _Sizes(len(pieces), starts[-1], max(1, len(asked)), max(len(piece.ids) for piece in pieces))
        index = range(step.asked) if step else (asked or [0])
        number, binding = self._recorded[arena, step] if step else (_NOT_RECORDED, self._bind(arena, sizes))
        ids, positions = [piece.ids for piece in pieces], [slot.length for slot in slots]
        self._buffers[arena].send(ids, positions, [slot.row for slot in slots], index, sizes.rows)
        self._launch(binding, number)
        outputs = self._buffers[arena].receive(sizes.asked)
        if step:
            outputs = tuple(output[asked] for output in outputs)
        ends = list(accumulate((len(piece.asked) for piece in pieces), initial=0))
        return [tuple(output[begin:end] for output in outputs) for begin, end in pairwise(ends)]

    def _recorded_step(self, arena: Arena, pieces: Sequence[RowPiece]) -> _Sizes | None:
        """The recorded step that serves the pieces, if one does."""
        if any(len(piece.ids) > 1 for piece in pieces):
            return None
        rows = next((size for size in RECORDED_ROWS if len(pieces) <= size), 0)
        step = _step(rows, is_long=max(piece.row.slot.length for piece in pieces) >= LONG_CELLS)
        return step if (arena, step) in self._recorded else None

    def _launch(self, binding: onnxruntime.IOBinding, number: int) -> None:
        """Queues a pass. `number` is that of its recording, which is made when it is launched first."""
        run = onnxruntime.RunOptions()
        run.add_run_config_entry("gpu_graph_id", str(number))
        run.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._session.run_with_iobinding(binding, run)

    def _open(self, arena: Arena) -> None:
        """Makes what passes over a new arena need, and records its steps: before the first answer, not during it."""
        self._buffers[arena] = buffers = PassBuffers(
            self._cuda, arena, self._widths, self._most_asked, self._candidates
        )
        self._bindings[arena] = self._bind_caches(arena)
        sizes = [rows for rows in RECORDED_ROWS if rows < 2 * arena.rows and rows <= self._most_asked]
        for step in [_step(rows, is_long=is_long) for rows in sizes for is_long in (False, True)]:
            if not self._records or step.least > arena.capacity:
                continue
            number, binding = 1 + len(self._recorded), self._bind(arena, step, self._bind_caches(arena))
            buffers.send([], [], [], range(step.asked), step.rows)
            self._launch(binding, number)
            buffers.receive(step.asked)
            self._recorded[arena, step] = number, binding

    def _bind_caches(self, arena: Arena) -> onnxruntime.IOBinding:
        """Binds past and present of all slots to the same memory."""
        binding = self._session.io_binding()
        pages = arena.rows * arena.capacity // PAGE_CELLS + 1  # the last is spare
        for number, cache in enumerate(arena.caches):
            kind = _BFLOAT16 if cache.dtype == "bfloat16" else np.dtype(cache.dtype)
            place = ("cuda", self._cuda.device, kind, (pages, *cache.shape(PAGE_CELLS)), arena.address(number, 0))
            binding.bind_input(cache.past, *place)
            binding.bind_output(cache.present, *place)
        return binding

    def _bind(self, arena: Arena, sizes: _Sizes, binding: onnxruntime.IOBinding | None = None) -> onnxruntime.IOBinding:
        """Binds the inputs and outputs of a pass to the arena's buffers, in `binding` or in the one of all passes that
        are not recorded."""
        binding = binding or self._bindings[arena]
        buffers, device = self._buffers[arena], self._cuda.device
        shapes: dict[str, tuple[int, ...]] = {
            GRAPH_INPUT_IDS: (sizes.tokens,),
            GRAPH_POSITIONS: (sizes.rows,),
            GRAPH_ROW_STARTS: (sizes.rows + 1,),
            GRAPH_LOGIT_INDEX: (sizes.asked,),
            GRAPH_PAGES: (sizes.rows, buffers.pages),
        }
        if self._candidates:
            shapes[GRAPH_CANDIDATES] = (len(self._candidates),)
        for name, shape in shapes.items():
            binding.bind_input(name, "cuda", device, np.int32, shape, buffers.input(name))
        bounds = [sizes.longest, arena.capacity, *([sizes.least] if sizes.least else [])]
        binding.bind_cpu_input(GRAPH_BOUNDS, np.array(bounds, np.int32))
        for number, (name, width) in enumerate(self._widths.items()):
            place = (sizes.asked, width), buffers.output(number, sizes.asked)
            binding.bind_output(name, "cuda", device, np.float32, *place)
        return binding


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def _step(rows: int, *, is_long: bool) -> _Sizes:
    return _Sizes(rows, rows, rows, 1, LONG_CELLS if is_long else 0)
