"""Runs an exported graph in ONNX Runtime, on the CPU or on a CUDA device, over KV slots in the same memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
from qwen3guard_contract.errors import CorruptFile, DeviceError, ExportMissing, InvalidParameter
from qwen3guard_contract.integer_products import Products, ensure_exact
from qwen3guard_contract.manifest import (
    GRAPH,
    GRAPH_CANDIDATES,
    GRAPH_INPUT_IDS,
    GRAPH_LOGIT_INDEX,
    GRAPH_POSITIONS,
    Manifest,
)

from qwen3guard_runtime.engine.cuda_session import CPU, cuda_session
from qwen3guard_runtime.engine.host import cores
from qwen3guard_runtime.engine.kv_cache import Arena, Ids
from qwen3guard_runtime.engine.runner import Logits, Passes, PassLimits

BINDINGS = 64
"""The number of ranges of slots whose bindings are kept. To bind the 56 caches of a 0.6B takes less than a
millisecond."""
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16, for which numpy has no name


class OnnxRunner(Passes):
    """One ONNX Runtime session, which reads and writes keys and values in the slots themselves.

    `candidates` are the ids of a Gen graph's input of that name. `cuda` has the options of ONNX Runtime's CUDA
    provider; with it, the slots are in that device's memory. Raises ExportMissing, CorruptFile, DeviceError or
    InvalidParameter.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        candidates: Sequence[int] = (0,),
        *,
        threads: int = 0,
        cuda: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(PassLimits())
        graph = folder / GRAPH
        if not graph.is_file():
            raise ExportMissing(f"{graph} is missing: export a checkpoint first.")
        if not manifest.form.runs_on_cpu and cuda is None:
            raise DeviceError(_needs_a_gpu(manifest))
        if (cuda or {}).get("enable_cuda_graph", "0") != "0":
            raise InvalidParameter(
                "The parameter cuda_options has enable_cuda_graph, which a portable graph cannot have: export the"
                " checkpoint with --attention paged, whose steps are recorded anyway."
            )
        options = onnxruntime.SessionOptions()
        # With more threads than KV heads, the products of a small batch may be split in another way than those of a
        # large one, and a row's result may depend on its batch.
        options.intra_op_num_threads = threads or min(manifest.kv_heads, cores())
        # After a pass, its threads would look for work for milliseconds more, on cores that whoever comes next needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        self.products: Products | None = ensure_exact(options) if manifest.form.has_integers else None
        """Whether integer products are exact here without help or by a repair; None if the graph has none."""
        self._session = cuda_session(graph, options, cuda) if cuda is not None else _cpu_session(graph, options)
        inputs = [each.name for each in self._session.get_inputs()]
        if not manifest.describes(inputs, self._session.get_modelmeta().custom_metadata_map):
            raise CorruptFile(f"{graph} is not the graph that its manifest describes: export the checkpoint again.")
        self._device = "cpu" if cuda is None else "cuda"
        self._device_id = int((cuda or {}).get("device_id", 0))
        self._candidates = np.array(candidates, np.int32) if GRAPH_CANDIDATES in inputs else None
        self._outputs = manifest.outputs
        self._binding = lru_cache(BINDINGS)(self._bind)

    def _pass(self, arena: Arena, first: int, ids: Ids, positions: Ids, index: Ids) -> Logits:
        binding = self._binding(arena, first, len(ids))
        binding.bind_cpu_input(GRAPH_INPUT_IDS, ids)
        binding.bind_cpu_input(GRAPH_POSITIONS, positions)
        binding.bind_cpu_input(GRAPH_LOGIT_INDEX, index)
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        return tuple(value.numpy() for value in binding.get_outputs()[-len(self._outputs) :])

    def _bind(self, arena: Arena, first: int, count: int) -> onnxruntime.IOBinding:
        """Binds past and present of `count` slots, from the slot `first` on, to the same memory."""
        binding = self._session.io_binding()
        if self._candidates is not None:
            binding.bind_cpu_input(GRAPH_CANDIDATES, self._candidates)
        for number, cache in enumerate(arena.caches):
            kind = _BFLOAT16 if cache.dtype == "bfloat16" else np.dtype(cache.dtype)
            place = (self._device, self._device_id, kind, (count, *cache.shape(arena.capacity)))
            binding.bind_input(cache.past, *place, arena.address(number, first))
            binding.bind_output(cache.present, *place, arena.address(number, first))
        return binding


def _cpu_session(graph: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(graph, options, providers=[CPU])
    except Exception as error:
        raise CorruptFile(f"{graph} cannot be loaded: {str(error)[:200]}.") from error


def _needs_a_gpu(manifest: Manifest) -> str:
    if manifest.form.is_paged:
        return f"A guard in {manifest.form} needs a GPU: export it in another attention form to run it on a CPU."
    return "A bf16 guard needs a GPU: ONNX Runtime multiplies no bf16 on a CPU. Export fp16."
