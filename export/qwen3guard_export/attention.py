"""Attention forms: how queries read a row's KV slot.

Both let a token see the cache indices up to its own position, after the new keys and values were written into the
slot (TensorScatter, so that past and present may be one buffer). They differ in the operators that multiply:
`portable` is standard opset 24, `decomposed` is what ONNX Runtime's CPU provider runs fastest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from qwen3guard_export.emitter import CONTRIB, Emitter

AttentionForm = Literal["decomposed", "portable"]
ATTENTION_FORMS: tuple[str, ...] = get_args(AttentionForm)

_HIDDEN_SCORE = -1e30  # added to a score; exp() of it is 0, and a score plus it stays finite


@dataclass(frozen=True)
class Attention:
    """The parts shared by all layers: the mask is computed once a graph.

    `mask` is bool [rows, 1, tokens, capacity] (portable) or float32 [rows, 1, group * tokens, capacity].
    """

    form: AttentionForm
    query_heads: int
    kv_heads: int
    head_dim: int
    mask: str

    def emit(self, graph: Emitter, queries: str, keys: str, values: str) -> str:
        """queries [rows, query_heads, tokens, head_dim], keys and values [rows, kv_heads, capacity, head_dim]
        -> [rows, tokens, query_heads * head_dim]. Scores are scaled by 1 / sqrt(head_dim)."""
        scale = self.head_dim**-0.5
        if self.form == "portable":
            context = graph.op("Attention", [queries, keys, values, self.mask], scale=scale)
        else:
            grouped = self._group(graph, queries)
            scores = graph.op("FusedMatMul", [grouped, keys], domain=CONTRIB, transB=1, alpha=scale)
            shares = graph.op("Softmax", [graph.op("Add", [scores, self.mask])], axis=-1)
            context = self._ungroup(graph, graph.op("MatMul", [shares, values]))
        joined = graph.op("Transpose", [context], perm=[0, 2, 1, 3])
        return graph.op("Reshape", [joined, graph.ints(0, 0, self.query_heads * self.head_dim)])

    def _group(self, graph: Emitter, queries: str) -> str:
        """The query heads of one KV head stacked as rows of one matrix, so that K and V are never repeated.

        A head alone is stacked on itself: ONNX Runtime has another kernel for a single row, which rounds
        otherwise, and a token would then come out differently alone and in a batch of longer rows.
        """
        if self.query_heads == self.kv_heads:
            return graph.op("Concat", [queries, queries], axis=2)
        return graph.op("Reshape", [queries, graph.ints(0, self.kv_heads, -1, self.head_dim)])

    def _ungroup(self, graph: Emitter, context: str) -> str:
        if self.query_heads == self.kv_heads:
            half = graph.op("Reshape", [context, graph.ints(0, self.kv_heads, 2, -1, self.head_dim)])
            return graph.op("Gather", [half, graph.scalar(0, np.int64)], axis=2)
        return graph.op("Reshape", [context, graph.ints(0, self.query_heads, -1, self.head_dim)])


def attention(
    graph: Emitter,
    form: AttentionForm,
    *,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    places: str,
    capacity: str,
) -> Attention:
    """`places` int64 [rows, tokens]: each token's absolute position; `capacity` int64 [1]."""
    zero, one = graph.scalar(0, np.int64), graph.scalar(1, np.int64)
    indices = graph.op("Range", [zero, graph.op("Squeeze", [capacity]), one])
    seen = graph.op("LessOrEqual", [indices, graph.op("Unsqueeze", [places, graph.ints(1, 3)])])
    if form == "decomposed":
        shown, hidden = graph.scalar(0.0, np.float32), graph.scalar(_HIDDEN_SCORE, np.float32)
        seen = graph.op("Where", [seen, shown, hidden])
        seen = graph.op("Concat", [seen] * max(2, query_heads // kv_heads), axis=2)
    return Attention(form, query_heads, kv_heads, head_dim, seen)


def scatter(graph: Emitter, past: str, update: str, positions: str, present: str) -> str:
    """`update` [rows, kv_heads, tokens, head_dim] written into each row's slot from `positions` [rows] on."""
    return graph.op("TensorScatter", [past, update, positions], name=present, mode="linear", axis=2)
