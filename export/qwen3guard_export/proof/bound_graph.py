"""Runs an exported graph in ONNX Runtime with KV slots of its own, for the proof and the tests.

Past and present are bound to one buffer, as in serving. This module knows tokens and slots, and checks nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto
from qwen3guard_contract.forms import Form
from qwen3guard_contract.integer_products import ensure_exact
from qwen3guard_contract.manifest import (
    GEN_OUTPUTS,
    GRAPH,
    GRAPH_INPUT_IDS,
    GRAPH_LOGIT_INDEX,
    GRAPH_POSITIONS,
    STREAM_OUTPUTS,
)
from qwen3guard_contract.slots import Cache

from qwen3guard_export.checkpoint.checkpoint import Architecture
from qwen3guard_export.checkpoint.weight_files import Array, FloatArray
from qwen3guard_export.graph.attention import kv_caches
from qwen3guard_export.proof.bf16_on_cpu import compute_in_float32
from qwen3guard_export.proof.reference import Tokens

GraphOutputs = dict[str, FloatArray]


@dataclass(frozen=True)
class RowChunk:
    """Tokens of one row, written into KV slot `slot` from `position` on; the first with outputs has the index
    `asked`."""

    slot: int
    position: int
    tokens: Tokens
    asked: int = 0


class BoundGraph:
    """An exported graph with its KV slots: `slots` rows of `capacity` cells, with one buffer for past and present.

    `watched` names tensors within the graph, [rows, tokens, n] or [asked, n], which are returned with the outputs. A
    row gives the same bits alone and in a batch as long as `threads` <= kv_heads. With more threads, ONNX Runtime
    splits the matrix products of a small batch differently from those of a large one.
    """

    def __init__(
        self,
        folder: Path,
        architecture: Architecture,
        form: Form,
        *,
        slots: int,
        capacity: int,
        threads: int | None = None,
        watched: Sequence[str] = (),
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or min(architecture.kv_heads, os.cpu_count() or 1)
        options.log_severity_level = 4
        ensure_exact(options)
        self._session = _session(folder, form, options, watched)
        self._form = form
        logits = GEN_OUTPUTS if architecture.variant == "gen" else STREAM_OUTPUTS
        self._outputs = (*logits, *watched)
        self.slots: dict[Cache, Array] = {
            cache: np.zeros((slots, *cache.shape(capacity)), cache.dtype) for cache in kv_caches(form, architecture)
        }

    def fill_with_noise(self, random: np.random.Generator) -> None:
        """Fills the slots with random numbers, as another sequence might have left them."""
        for buffer in self.slots.values():
            buffer[...] = 3 * random.standard_normal(buffer.shape, np.float32)

    def run(self, chunks: Sequence[RowChunk]) -> list[GraphOutputs]:
        """Runs `chunks` in one pass, padded on the right; they must name neighbouring slots, in order.

        Returns for each chunk its outputs by name: [asked tokens, n], and [tokens, n] for a tensor that has all tokens.
        Raises ValueError for other slots.
        """
        rows, width = len(chunks), max(len(chunk.tokens) for chunk in chunks)
        if not self._form.takes_ragged_rows and rows > 1 and width > 1:
            return [self.run([chunk])[0] for chunk in chunks]
        if [chunk.slot for chunk in chunks] != list(range(chunks[0].slot, chunks[0].slot + rows)):
            raise ValueError("the chunks of one run must name neighbouring slots in order")
        ids = np.zeros((rows, width), np.int64)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk.tokens)] = chunk.tokens
        asked = [(row, column) for row, chunk in enumerate(chunks) for column in range(chunk.asked, len(chunk.tokens))]
        binding = self._session.io_binding()
        binding.bind_cpu_input(GRAPH_INPUT_IDS, ids)
        binding.bind_cpu_input(GRAPH_POSITIONS, np.array([chunk.position for chunk in chunks], np.int64))
        # At least one token is asked for, as in serving, since a kernel may not take an empty batch.
        binding.bind_cpu_input(GRAPH_LOGIT_INDEX, np.array(asked or [(0, 0)], np.int64))
        self._bind_slots(binding, chunks[0].slot, rows)
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        values: list[Any] = [value.numpy() for value in binding.get_outputs()[-len(self._outputs) :]]
        ends = np.cumsum([len(chunk.tokens) - chunk.asked for chunk in chunks])
        return [
            {
                name: value[row, : len(chunk.tokens)]
                if value.ndim == 3
                else value[end - len(chunk.tokens) + chunk.asked : end]
                for name, value in zip(self._outputs, values, strict=True)
            }
            for row, (chunk, end) in enumerate(zip(chunks, ends, strict=True))
        ]

    def run_pieces(self, slot: int, tokens: Tokens, lengths: Sequence[int], asked: int = 0) -> GraphOutputs:
        """Writes `tokens` from position 0 on in pieces of `lengths`; the outputs are those from token `asked` on."""
        starts = np.cumsum([0, *lengths])[:-1]
        return joined(
            [
                self.run(
                    [RowChunk(slot, int(start), tokens[start : start + length], min(length, max(0, asked - start)))]
                )[0]
                for start, length in zip(starts, lengths, strict=True)
            ]
        )

    def _bind_slots(self, binding: Any, first: int, rows: int) -> None:
        for cache, buffer in self.slots.items():
            cells = buffer[first : first + rows]
            kind = TensorProto.BFLOAT16 if cache.dtype == "bfloat16" else cells.dtype
            binding.bind_input(cache.past, "cpu", 0, kind, cells.shape, cells.ctypes.data)
            binding.bind_output(cache.present, "cpu", 0, kind, cells.shape, cells.ctypes.data)


def joined(pieces: Sequence[GraphOutputs]) -> GraphOutputs:
    """Joins the outputs of a row's pieces."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _session(folder: Path, form: Form, options: ort.SessionOptions, watched: Sequence[str]) -> ort.InferenceSession:
    graph = folder / GRAPH
    if form.runs_on_cpu and not watched:
        return ort.InferenceSession(os.fspath(graph), options, providers=["CPUExecutionProvider"])
    changed = folder / f"changed-{GRAPH}"  # in the same folder, since both graphs read one weight file
    try:
        model = onnx.load(graph, load_external_data=False)
        if not form.runs_on_cpu:
            compute_in_float32(model.graph)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in watched)
        changed.write_bytes(model.SerializeToString())
        return ort.InferenceSession(os.fspath(changed), options, providers=["CPUExecutionProvider"])
    finally:
        changed.unlink(missing_ok=True)
