"""Attention forms: how new keys and values get into a row's KV slot, and how queries read it.

In every form a token sees the cells up to its own position, after the new cells were written in place (past and present
may be one buffer). The forms differ in their operators and in the numbers of a cell:

    portable    standard opset 24, which TensorRT can build too
    decomposed  the operators that ONNX Runtime's CPU provider runs fastest
    int8        like decomposed, with keys and values of eight bits, which is a quarter of the bytes to read

The paged forms have a graph of their own, in `paged`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from qwen3guard_contract.forms import Form
from qwen3guard_contract.slots import CELL_STEP, Cache, caches

from qwen3guard_export.checkpoint.checkpoint import Architecture
from qwen3guard_export.graph.emitter import CONTRIB, Emitter
from qwen3guard_export.graph.quantize import (
    HALVES,
    quantize_positive_u8,
    quantize_s8,
    quantize_u8,
    row_scale,
)

_HIDDEN_SCORE = -1e30  # added to a score; exp() of it is 0, and a score plus it stays finite
_LEVELS = 127.0
_QUERY_LEVELS, _QUERY_ZERO_POINT = 63.0, 64
_SHARE_LEVELS = 127.0
"""Queries and shares have seven bits. CPUs without VNNI add two u8 x s8 products in a saturating int16, and 2 * 127 *
127 fits in that. Values have all eight bits, and so do keys, which may have outlying dimensions
(docs/performance.md)."""


def kv_caches(form: Form, architecture: Architecture) -> tuple[Cache, ...]:
    """The arrays that hold keys and values, layer by layer."""
    return caches(
        form.kv_dtype,
        layers=architecture.layers,
        kv_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        paged=form.is_paged,
    )


@dataclass(frozen=True)
class Attention:
    """Attention in one form, with the tensors that all layers share; made by `attention`.

    `mask` is bool [rows, 1, tokens, capacity] (portable), or float32 [rows, 1, stacked tokens, capacity] to be added to
    the scores.
    """

    graph: Emitter
    form: Form
    query_heads: int
    kv_heads: int
    head_dim: int
    positions: str
    mask: str

    def emit(self, caches: Sequence[Cache], turned: str, values: str) -> str:
        """Adds one layer's attention to the graph: [rows, tokens, query_heads * head_dim].

        `turned` are queries and new keys after the rotation, [rows, query_heads + kv_heads, tokens, head_dim]; `values`
        are new values, [rows, kv_heads, tokens, head_dim]. Scores are scaled by 1 / sqrt(head_dim).
        """
        if self.form.has_integer_kv:
            context = self._int8(caches, turned, values)
        else:
            if half := next((half for half in HALVES.values() if half.name == caches[0].dtype), None):
                turned, values = (self.graph.op("Cast", [each], to=half.onnx) for each in (turned, values))
            queries, keys = self.graph.split(turned, [self.query_heads, self.kv_heads], axis=1)
            keys, values = (self._write(cache, new) for cache, new in zip(caches, (keys, values), strict=True))
            read = self._portable if self.form.is_standard else self._decomposed
            context = read(queries, keys, values)
        joined = self.graph.op("Transpose", [context], perm=[0, 2, 1, 3])
        return self.graph.op("Reshape", [joined, self.graph.ints(0, 0, self.query_heads * self.head_dim)])

    def _write(self, cache: Cache, update: str) -> str:
        """Writes `update` into each row's slot, from `positions` [rows] on; returns the new cache's name."""
        inputs = [cache.past, update, self.positions]
        return self.graph.op("TensorScatter", inputs, name=cache.present, mode="linear", axis=cache.cell_axis)

    @property
    def _scale(self) -> float:
        return float(self.head_dim**-0.5)

    def _portable(self, queries: str, keys: str, values: str) -> str:
        return self.graph.op("Attention", [queries, keys, values, self.mask], scale=self._scale)

    def _decomposed(self, queries: str, keys: str, values: str) -> str:
        graph = self.graph
        scores = graph.op("FusedMatMul", [self._group(queries), keys], domain=CONTRIB, transB=1, alpha=self._scale)
        shares, total = self._shares(graph.op("Add", [scores, self.mask]))
        return self._ungroup(graph.op("Div", [graph.op("MatMul", [shares, values]), total]))

    def _int8(self, caches: Sequence[Cache], turned: str, values: str) -> str:
        """Each vector of a head and a token has its own scale, so nothing depends on calibration or on other rows.

        The shares are quantized in blocks of cells, each with its own scale. With a single scale, a token that gets
        nearly all the attention would leave no levels to the many tokens that share the rest.
        """
        graph, size, (key_cache, value_cache, scale_cache) = self.graph, self.head_dim, caches
        queries, keys = graph.split(turned, [self.query_heads, self.kv_heads], axis=1)
        new = graph.op("Concat", [keys, values], axis=1)
        scale = row_scale(graph, new, _LEVELS)
        keys, values = graph.split(quantize_s8(graph, new, scale, size), [self.kv_heads, self.kv_heads], axis=1)
        keys = self._write(key_cache, graph.op("Transpose", [keys], perm=[0, 1, 3, 2]))
        values = self._write(value_cache, values)
        scales = self._write(scale_cache, graph.op("Transpose", [scale], perm=[0, 1, 3, 2]))
        key_scale, value_scale = graph.split(scales, [self.kv_heads, self.kv_heads], axis=1)

        one = graph.scalar(1.0, np.float32)
        queries = graph.op("Reshape", [queries, graph.ints(0, self.kv_heads, -1, size)])
        query_scale = row_scale(graph, queries, _QUERY_LEVELS)
        queries = quantize_u8(graph, queries, query_scale, size, zero_point=_QUERY_ZERO_POINT, rows_key="queries")
        unit, zero = graph.scalar(self._scale, np.float32), graph.scalar(_QUERY_ZERO_POINT, np.uint8)
        scores = graph.op("MatMulIntegerToFloat", [queries, keys, unit, key_scale, zero], domain=CONTRIB)
        shares, total = self._shares(graph.op("Add", [graph.op("Mul", [scores, query_scale]), self.mask]))
        shares = graph.op("Mul", [shares, value_scale])
        blocks = graph.op("Reshape", [shares, graph.ints(0, 0, 0, -1, CELL_STEP)])
        scale = row_scale(graph, blocks, _SHARE_LEVELS, positive=True)
        blocks = quantize_positive_u8(graph, blocks, scale, CELL_STEP)
        blocks, scale = (graph.op("Transpose", [each], perm=[0, 1, 3, 2, 4]) for each in (blocks, scale))
        values = graph.op("Reshape", [values, graph.ints(0, self.kv_heads, -1, CELL_STEP, size)])
        zero = graph.scalar(0, np.uint8)
        context = graph.op("MatMulIntegerToFloat", [blocks, values, one, one, zero], domain=CONTRIB)
        context = graph.op("ReduceSum", [graph.op("Mul", [context, scale]), graph.ints(2)], keepdims=0)
        context = graph.op("Div", [context, total])
        return graph.op("Reshape", [context, graph.ints(0, self.query_heads, -1, size)])

    def _shares(self, scores: str) -> tuple[str, str]:
        """exp(scores - their largest) in 0..1, and its sum [..., 1], by which the context is divided later.

        This is not Softmax, because ONNX Runtime's Softmax sums in as many lanes as the CPU has. So its last bit
        differs between kinds of CPU; that of these operators does not (docs/performance.md).
        """
        graph, last = self.graph, self.graph.ints(-1)
        largest = graph.op("ReduceMax", [scores, last], keepdims=1)
        shares = graph.op("Exp", [graph.op("Sub", [scores, largest])])
        return shares, graph.op("ReduceSum", [shares, last], keepdims=1)

    def _group(self, queries: str) -> str:
        """Stacks the query heads of each KV head as rows of one matrix, so that K and V are not repeated.

        A single query head is stacked twice. ONNX Runtime has another kernel for a matrix of one row, which rounds
        differently, so a token alone would get other numbers than in a batch of longer rows.
        """
        if self.query_heads == self.kv_heads:
            return self.graph.op("Concat", [queries, queries], axis=2)
        return self.graph.op("Reshape", [queries, self.graph.ints(0, self.kv_heads, -1, self.head_dim)])

    def _ungroup(self, context: str) -> str:
        graph = self.graph
        if self.query_heads == self.kv_heads:
            half = graph.op("Reshape", [context, graph.ints(0, self.kv_heads, 2, -1, self.head_dim)])
            return graph.op("Gather", [half, graph.scalar(0, np.int64)], axis=2)
        return graph.op("Reshape", [context, graph.ints(0, self.query_heads, -1, self.head_dim)])


def attention(
    graph: Emitter,
    form: Form,
    *,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    positions: str,
    token_positions: str,
    capacity: str,
) -> Attention:
    """Adds to the graph what the attention of all layers shares.

    `positions` int64 [rows] are those of each row's first token, `token_positions` int64 [rows, tokens] those of every
    token, and `capacity` is int64 [1].
    """
    common = (graph, form, query_heads, kv_heads, head_dim, positions)
    zero, one = graph.scalar(0, np.int64), graph.scalar(1, np.int64)
    indices = graph.op("Range", [zero, graph.op("Squeeze", [capacity]), one])
    seen = graph.op("LessOrEqual", [indices, graph.op("Unsqueeze", [token_positions, graph.ints(1, 3)])])
    if not form.is_standard:
        shown, hidden = graph.scalar(0.0, np.float32), graph.scalar(_HIDDEN_SCORE, np.float32)
        seen = graph.op("Where", [seen, shown, hidden])
        stacked = query_heads // kv_heads
        if not form.has_integer_kv:
            stacked = max(2, stacked)
        seen = graph.op("Concat", [seen] * stacked, axis=2)
    return Attention(*common, mask=seen)
