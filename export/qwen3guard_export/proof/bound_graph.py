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
    GEN_CHOICES,
    GEN_OUTPUTS,
    GRAPH,
    GRAPH_BOUNDS,
    GRAPH_CANDIDATES,
    GRAPH_INPUT_IDS,
    GRAPH_LOGIT_INDEX,
    GRAPH_PAGES,
    GRAPH_POSITIONS,
    GRAPH_ROW_STARTS,
    STREAM_OUTPUTS,
)
from qwen3guard_contract.slots import PAGE_CELLS, Cache, whole_pages

from qwen3guard_export.checkpoint.checkpoint import Architecture
from qwen3guard_export.checkpoint.weight_files import Array, FloatArray
from qwen3guard_export.graph.attention import kv_caches
from qwen3guard_export.graph.graph import after_attention, after_feed_forward
from qwen3guard_export.graph.quantize import HALVES
from qwen3guard_export.proof.on_cpu import run_on_cpu
from qwen3guard_export.proof.reference import Tokens

ASKED_CANDIDATES = (0, 5, 1)
"""The ids of tokens whose logits a Gen graph is asked for."""
_WATCHED = ".watched"
"""Is added to the name of a watched tensor where it is an output, in float32."""
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

    `watched` names tensors within the graph, [rows, tokens, n] or [asked, n], which are returned with the outputs. With
    `choices`, those of a Gen graph (`manifest.GEN_CHOICES`) are returned too, beside its logits. A row gives the same
    bits alone and in a batch as long as `threads` <= kv_heads. With more threads, ONNX Runtime splits the matrix
    products of a small batch differently from those of a large one.
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
        choices: bool = False,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or min(architecture.kv_heads, os.cpu_count() or 1)
        options.add_session_config_entry("session.force_spinning_stop", "1")  # numpy needs the cores between passes
        options.log_severity_level = 4
        ensure_exact(options)
        self._form = form
        logits = GEN_OUTPUTS if architecture.variant == "gen" else STREAM_OUTPUTS
        self.has_choices = architecture.variant == "gen"
        # A paged Gen graph has no logits among its outputs, so they are watched within it.
        inner = GEN_OUTPUTS if self.has_choices and form.is_paged else ()
        self._outputs, self._watched = (*logits, *watched), {*inner, *watched}
        if self.has_choices and choices:
            self._outputs = (*GEN_CHOICES, *self._outputs)
        last = architecture.layers - 1
        self._of_all_tokens = set(watched) - {after_attention(last), after_feed_forward(last)}
        self._capacity = whole_pages(capacity) if form.is_paged else capacity
        self._session = _session(folder, form, options, [*inner, *watched])
        self.slots: dict[Cache, Array] = {
            cache: np.zeros((slots, *cache.shape(self._capacity)), cache.dtype)
            for cache in kv_caches(form, architecture)
        }

    def fill_with_noise(self, random: np.random.Generator) -> None:
        """Fills the slots with random numbers, as another sequence might have left them."""
        for buffer in self.slots.values():
            buffer[...] = 3 * random.standard_normal(buffer.shape, np.float32)

    def run(self, chunks: Sequence[RowChunk]) -> list[GraphOutputs]:
        """Runs `chunks` in one pass. Unless the form is paged, they must name neighbouring slots in order.

        Returns for each chunk its outputs by name: [asked tokens, n], and [tokens, n] for a tensor that has all tokens.
        Raises ValueError for other slots.
        """
        if self._form.is_paged:
            feeds = self._paged_inputs(chunks)
        elif [chunk.slot for chunk in chunks] == list(range(chunks[0].slot, chunks[0].slot + len(chunks))):
            feeds = _padded_inputs(chunks)
        else:
            raise ValueError("the chunks of one run must name neighbouring slots in order")
        if self.has_choices:
            feeds[GRAPH_CANDIDATES] = np.array(ASKED_CANDIDATES, np.int32)
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        self._bind_slots(binding, chunks[0].slot, len(chunks))
        for name in self._outputs:
            binding.bind_output(f"{name}{_WATCHED}" if name in self._watched else name)
        self._session.run_with_iobinding(binding)
        values: list[Any] = [value.numpy() for value in binding.get_outputs()[-len(self._outputs) :]]
        ends = np.cumsum([len(chunk.tokens) - chunk.asked for chunk in chunks])
        starts = np.cumsum([0, *(len(chunk.tokens) for chunk in chunks)])

        def of(name: str, value: Any, row: int, chunk: RowChunk) -> Any:
            if value.ndim == 3:
                return value[row, : len(chunk.tokens)]
            if name in self._of_all_tokens:
                return value[starts[row] : starts[row + 1]]
            return value[ends[row] - len(chunk.tokens) + chunk.asked : ends[row]]

        return [
            {name: of(name, value, row, chunk) for name, value in zip(self._outputs, values, strict=True)}
            for row, chunk in enumerate(chunks)
        ]

    def _paged_inputs(self, chunks: Sequence[RowChunk]) -> dict[str, Array]:
        """The inputs of a paged graph (`manifest.PAGED_INPUTS`): the tokens of all chunks, without padding."""
        pages = self._capacity // PAGE_CELLS
        starts = np.cumsum([0, *(len(chunk.tokens) for chunk in chunks)])
        asked = [
            start + index
            for start, chunk in zip(starts, chunks, strict=False)
            for index in range(chunk.asked, len(chunk.tokens))
        ]
        inputs: dict[str, Any] = {
            GRAPH_INPUT_IDS: np.concatenate([chunk.tokens for chunk in chunks]),
            GRAPH_POSITIONS: [chunk.position for chunk in chunks],
            GRAPH_LOGIT_INDEX: asked or [0],
            GRAPH_ROW_STARTS: starts,
            GRAPH_PAGES: np.array([[chunk.slot] for chunk in chunks]) * pages + np.arange(pages),
            GRAPH_BOUNDS: [max(len(chunk.tokens) for chunk in chunks), self._capacity],
        }
        return {name: np.asarray(values, np.int32) for name, values in inputs.items()}

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
            pages = buffer.reshape(-1, *cache.shape(PAGE_CELLS)) if self._form.is_paged else None
            cells = buffer[first : first + rows] if pages is None else pages
            kind = TensorProto.BFLOAT16 if cache.dtype == "bfloat16" else cells.dtype
            binding.bind_input(cache.past, "cpu", 0, kind, cells.shape, cells.ctypes.data)
            binding.bind_output(cache.present, "cpu", 0, kind, cells.shape, cells.ctypes.data)


def joined(pieces: Sequence[GraphOutputs]) -> GraphOutputs:
    """Joins the outputs of a row's pieces."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _padded_inputs(chunks: Sequence[RowChunk]) -> dict[str, Array]:
    """The chunks as rows, padded on the right. At least one token is asked for, as in serving, since a kernel may not
    take an empty batch."""
    ids = np.zeros((len(chunks), max(len(chunk.tokens) for chunk in chunks)), np.int64)
    for row, chunk in enumerate(chunks):
        ids[row, : len(chunk.tokens)] = chunk.tokens
    asked = [(row, column) for row, chunk in enumerate(chunks) for column in range(chunk.asked, len(chunk.tokens))]
    return {
        GRAPH_INPUT_IDS: ids,
        GRAPH_POSITIONS: np.array([chunk.position for chunk in chunks], np.int64),
        GRAPH_LOGIT_INDEX: np.array(asked or [(0, 0)], np.int64),
    }


def _session(folder: Path, form: Form, options: ort.SessionOptions, watched: Sequence[str]) -> ort.InferenceSession:
    graph = folder / GRAPH
    if form.runs_on_cpu and not watched:
        return ort.InferenceSession(os.fspath(graph), options, providers=["CPUExecutionProvider"])
    changed = folder / f"changed-{GRAPH}"  # in the same folder, since both graphs read one weight file
    try:
        model = onnx.load(graph, load_external_data=False)
        if not form.runs_on_cpu:
            run_on_cpu(model.graph, HALVES[form.weights].onnx)
        for name in watched:
            model.graph.node.append(onnx.helper.make_node("Cast", [name], [f"{name}{_WATCHED}"], to=TensorProto.FLOAT))
            model.graph.output.append(onnx.ValueInfoProto(name=f"{name}{_WATCHED}"))
        changed.write_bytes(model.SerializeToString())
        return ort.InferenceSession(os.fspath(changed), options, providers=["CPUExecutionProvider"])
    finally:
        changed.unlink(missing_ok=True)
