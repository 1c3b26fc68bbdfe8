"""The proof of an export: the ONNX graph, run through ONNX Runtime, against the checkpoint in plain numpy.

The same few seeded rows go through the graph in every way the server will use it: in one pass, in chunks over the
KV cache, token by token, and as a ragged batch in slots that hold another sequence's leftovers. Past and present are
bound to one buffer, as in serving.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto
from qwen3guard_client.errors import ParityError
from qwen3guard_client.integer_products import ensure_exact
from qwen3guard_client.manifest import (
    GEN_OUTPUTS,
    GRAPH,
    INPUT_IDS,
    LOGIT_INDEX,
    POSITIONS,
    STREAM_OUTPUTS,
    Cache,
    Canary,
)

from qwen3guard_export.attention import CAPACITY_STEP, AttentionForm, kv_caches, kv_dtype
from qwen3guard_export.checkpoint import Architecture, Checkpoint
from qwen3guard_export.quantize import WeightFormat
from qwen3guard_export.reference import Tokens, reference_logits
from qwen3guard_export.weight_files import Array, FloatArray
from qwen3guard_export.widen import widen

FP32_BOUND = 1e-4
"""Of the logits' scale, max |reference|: what float32 rounding leaves, with room."""
HALF_BOUNDS = {"fp16": 1e-2, "bf16": 1e-1}
"""The same for products in two bytes: about 16 of their roundings, 2^-11 and 2^-8."""
DQ8R_BOUND = 0.5
"""Of the logits' scale: no statement of quality, only that the graph computes this model and no other."""

_ROW_LENGTHS = (6, 13, 9)
_CANARY_TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "dq8r": 2e-2}
"""Absolute, of a probability or log-probability: room for another CPU's kernels and another chunking."""

Logits = dict[str, FloatArray]


@dataclass(frozen=True)
class Chunk:
    """Tokens of one row, written from `position` on into KV slot `slot`."""

    slot: int
    position: int
    tokens: Tokens


@dataclass(frozen=True)
class Proof:
    """`figures` by name: `one_pass`, `chunks`, `token_by_token`, `ragged_batch` are max |difference| / max |reference|
    over outputs and positions; `mean` has the mean |difference|; `batch_bit_identical` is 1.0 if rows alone equal
    rows in the batch."""

    figures: dict[str, float]
    canary: Canary


class BoundGraph:
    """An exported graph with its KV slots: `slots` rows of `capacity` indices, past and present one buffer.

    Bit-identity of a row alone and in a batch holds with `threads` <= kv_heads: with more, ONNX Runtime splits the
    matrix products of a small batch otherwise than those of a large one.
    """

    def __init__(
        self,
        folder: Path,
        architecture: Architecture,
        form: AttentionForm,
        weights: WeightFormat,
        *,
        slots: int,
        capacity: int,
        threads: int | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or min(architecture.kv_heads, os.cpu_count() or 1)
        options.log_severity_level = 4
        ensure_exact(options)
        self._session = _session(folder, weights, options)
        self._form = form
        self._outputs = GEN_OUTPUTS if architecture.variant == "gen" else STREAM_OUTPUTS
        self.slots: dict[Cache, Array] = {
            cache: np.zeros((slots, *cache.shape(capacity)), cache.dtype)
            for layer in kv_caches(form, weights, architecture)
            for cache in layer
        }

    def soil(self, random: np.random.Generator) -> None:
        """Fills the slots with what another sequence might have left."""
        for buffer in self.slots.values():
            buffer[...] = 3 * random.standard_normal(buffer.shape, np.float32)

    def run(self, chunks: Sequence[Chunk]) -> list[Logits]:
        """One forward over the slots 0, 1, ... that `chunks` name, in that order, padded on the right; each chunk's
        outputs [tokens, n] at all of its tokens."""
        rows, width = len(chunks), max(len(chunk.tokens) for chunk in chunks)
        if self._form == "gqa" and rows > 1 and width > 1:
            return [self.run([chunk])[0] for chunk in chunks]
        if [chunk.slot for chunk in chunks] != list(range(chunks[0].slot, chunks[0].slot + rows)):
            raise ValueError("the chunks of one run must name neighbouring slots in order")
        ids = np.zeros((rows, width), np.int64)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk.tokens)] = chunk.tokens
        asked = [(row, column) for row, chunk in enumerate(chunks) for column in range(len(chunk.tokens))]
        binding = self._session.io_binding()
        binding.bind_cpu_input(INPUT_IDS, ids)
        binding.bind_cpu_input(POSITIONS, np.array([chunk.position for chunk in chunks], np.int64))
        binding.bind_cpu_input(LOGIT_INDEX, np.array(asked, np.int64).reshape(-1, 2))
        first = chunks[0].slot
        for cache, buffer in self.slots.items():
            cells = buffer[first : first + rows]
            kind = TensorProto.BFLOAT16 if cache.dtype == "bfloat16" else cells.dtype
            binding.bind_input(cache.past, "cpu", 0, kind, cells.shape, cells.ctypes.data)
            binding.bind_output(cache.present, "cpu", 0, kind, cells.shape, cells.ctypes.data)
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        values: list[Any] = [value.numpy() for value in binding.get_outputs()[-len(self._outputs) :]]
        ends = np.cumsum([len(chunk.tokens) for chunk in chunks])[:-1]
        split = {name: np.split(value, ends) for name, value in zip(self._outputs, values, strict=True)}
        return [{name: split[name][row] for name in split} for row in range(rows)]

    def run_pieces(self, slot: int, tokens: Tokens, lengths: Sequence[int]) -> Logits:
        """`tokens` written from position 0 on in pieces of `lengths`; the outputs at every token."""
        starts = np.cumsum([0, *lengths])[:-1]
        pieces = [
            self.run([Chunk(slot, int(start), tokens[start : start + length])])[0]
            for start, length in zip(starts, lengths, strict=True)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _session(folder: Path, weights: WeightFormat, options: ort.SessionOptions) -> ort.InferenceSession:
    graph = folder / GRAPH
    if weights != "bf16":
        return ort.InferenceSession(os.fspath(graph), options, providers=["CPUExecutionProvider"])
    widened = folder / f"wide-{GRAPH}"
    try:
        widen(graph, widened)
        return ort.InferenceSession(os.fspath(widened), options, providers=["CPUExecutionProvider"])
    finally:
        widened.unlink(missing_ok=True)


def prove(folder: Path, checkpoint: Checkpoint, weights: WeightFormat, form: AttentionForm) -> Proof:
    """Runs the graph in `folder` and the reference on the same tokens.

    Raises ParityError beyond FP32_BOUND (HALF_BOUNDS, or DQ8R_BOUND where anything has eight bits), or if rows of a
    dq8r graph depend on their neighbours (only the forms made for CPUs promise that they do not).
    """
    architecture = checkpoint.architecture
    random = np.random.default_rng(0)
    lengths = [min(length, architecture.context) for length in _ROW_LENGTHS]
    rows = [random.integers(0, architecture.vocab, length) for length in lengths]
    expected = reference_logits(checkpoint, rows)
    try:
        graph = BoundGraph(folder, architecture, form, weights, slots=len(rows), capacity=CAPACITY_STEP)
        runs = {
            "one_pass": [graph.run([Chunk(0, 0, row)])[0] for row in rows],
            "chunks": [graph.run_pieces(0, row, _thirds(len(row))) for row in rows],
            "token_by_token": [graph.run_pieces(0, row, [1] * len(row)) for row in rows[:1]],
            "ragged_batch": _ragged(graph, rows, random),
        }
        alone = _ragged_alone(graph, rows)
    except Exception as error:  # ONNX Runtime's errors have no common base but this
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ParityError(f"ONNX Runtime cannot run the exported graph: {reason}") from error
    figures = {name: max(map(_difference, run, expected)) for name, run in runs.items()}
    figures["mean"] = max(map(_mean_difference, runs["one_pass"], expected))
    coarsest = "dq8r" if kv_dtype(form, weights) == "int8" else weights
    bound = {"fp32": FP32_BOUND, "dq8r": DQ8R_BOUND, **HALF_BOUNDS}[coarsest]
    for name, figure in figures.items():
        if not figure <= bound:
            raise ParityError(
                f"the {weights} graph ({form}) differs from the checkpoint by {figure:.2e} of the logits' scale"
                f" in {name}; at most {bound:.0e} is allowed."
            )
    identical = all(map(_identical, alone, runs["ragged_batch"]))
    if weights == "dq8r" and form in ("decomposed", "int8") and not identical:
        raise ParityError(f"a row of the {weights} graph depends on the rows it is batched with.")
    figures["batch_bit_identical"] = float(identical)
    tokens = tuple(int(token) for token in rows[0])
    values = canary_values(runs["one_pass"][0])
    return Proof(figures, Canary(tokens, values, _CANARY_TOLERANCE[coarsest]))


def canary_values(logits: Logits) -> tuple[float, ...]:
    """What `Canary.values` records of the outputs [tokens, n] at the last token."""
    name = GEN_OUTPUTS[0] if GEN_OUTPUTS[0] in logits else STREAM_OUTPUTS[0]
    last = logits[name][-1].astype(np.float64)
    logprobs = last - last.max() - np.log(np.exp(last - last.max()).sum())
    if name == GEN_OUTPUTS[0]:
        return (float(logprobs.max()),)
    return tuple(float(share) for share in np.exp(logprobs))


def _thirds(length: int) -> list[int]:
    first = math.ceil(length / 3)
    return [first, length - first] if length > first else [first]


def _heads_and_tails(rows: Sequence[Tokens]) -> tuple[list[Chunk], list[Chunk]]:
    """The rows cut at different depths, so that the second pass starts at a different position in every slot."""
    cuts = [max(1, len(row) - 2 * index - 1) for index, row in enumerate(rows)]
    heads = [Chunk(slot, 0, row[:cut]) for slot, (row, cut) in enumerate(zip(rows, cuts, strict=True))]
    tails = [Chunk(slot, cut, row[cut:]) for slot, (row, cut) in enumerate(zip(rows, cuts, strict=True))]
    return heads, tails


def _ragged(graph: BoundGraph, rows: Sequence[Tokens], random: np.random.Generator) -> list[Logits]:
    graph.soil(random)
    heads, tails = _heads_and_tails(rows)
    return [_joined(*pair) for pair in zip(graph.run(heads), graph.run(tails), strict=True)]


def _ragged_alone(graph: BoundGraph, rows: Sequence[Tokens]) -> list[Logits]:
    return [
        _joined(graph.run([head])[0], graph.run([tail])[0]) for head, tail in zip(*_heads_and_tails(rows), strict=True)
    ]


def _joined(head: Logits, tail: Logits) -> Logits:
    return {name: np.concatenate([head[name], tail[name]]) for name in head}


def _difference(found: Logits, expected: Logits) -> float:
    return max(float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in expected)


def _mean_difference(found: Logits, expected: Logits) -> float:
    return max(float(np.abs(found[name] - expected[name]).mean() / np.abs(expected[name]).max()) for name in expected)


def _identical(one: Logits, other: Logits) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in other)
