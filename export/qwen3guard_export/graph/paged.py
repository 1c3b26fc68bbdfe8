"""Writes the graph of the paged forms, for ONNX Runtime's CUDA provider alone.

Keys and values are in pages, and the tokens of all rows come one after the other. In each layer one PagedAttention
norms and rotates queries and keys, writes the cells, and attends. So a pass takes rows of any lengths, in any slots.
Nothing here is computed on the host or copied to it, so a pass can be recorded as a CUDA graph.

Products are in the weights' type, and so is everything between gate, up and down. The residual stream is float32, or in
the weights' type too (`Form.has_half_residual`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qwen3guard_contract.errors import WrongShape
from qwen3guard_contract.forms import Form
from qwen3guard_contract.manifest import (
    GRAPH_BOUNDS,
    GRAPH_INPUT_IDS,
    GRAPH_LOGIT_INDEX,
    GRAPH_PAGES,
    GRAPH_POSITIONS,
    GRAPH_ROW_STARTS,
)
from qwen3guard_contract.slots import PAGE_CELLS

from qwen3guard_export.checkpoint.checkpoint import EMBEDDING, FINAL_NORM, Checkpoint, block_tensor
from qwen3guard_export.graph import graph as unpaged
from qwen3guard_export.graph.emitter import CONTRIB, Emitter
from qwen3guard_export.graph.graph import (
    CACHE_TYPES,
    EMBEDDED,
    FLOAT,
    INT32,
    ROTATIONS,
    Qwen3,
    Residual,
    after_attention,
    after_feed_forward,
)
from qwen3guard_export.graph.quantize import HALVES

_HEAD_STEP = 8
PAGED_ATTENTION = "PagedAttention"


class PagedQwen3(Qwen3):
    """Raises WrongShape for heads that the operator does not take."""

    def __init__(self, graph: Emitter, checkpoint: Checkpoint, form: Form) -> None:
        super().__init__(graph, checkpoint, form)
        size = checkpoint.architecture.head_dim
        if size % _HEAD_STEP:
            raise WrongShape(f"Paged attention takes heads of a multiple of {_HEAD_STEP}, and these have {size}.")
        self.half = HALVES[form.weights]

    def emit(self) -> None:
        graph, architecture = self.graph, self.architecture
        ids = graph.input(GRAPH_INPUT_IDS, INT32, ["tokens"])
        graph.input(GRAPH_POSITIONS, INT32, ["rows"])
        graph.input(GRAPH_LOGIT_INDEX, INT32, ["asked"])
        graph.input(GRAPH_ROW_STARTS, INT32, ["starts"])
        graph.input(GRAPH_PAGES, INT32, ["rows", "pages_of_a_row"])
        graph.input(GRAPH_BOUNDS, INT32, ["bounds"])
        dims: list[int | str] = ["pages", PAGE_CELLS, architecture.kv_heads, architecture.head_dim]
        for cache in self.caches:
            graph.input(cache.past, CACHE_TYPES[cache.dtype], dims)
        stream = Residual(self._embed(ids))
        for layer in range(architecture.layers):
            stream = self._paged_block(layer, stream)
        _, hidden = self._join(stream, FINAL_NORM)
        if self.form.has_half_residual:
            hidden = graph.op("Cast", [hidden], to=FLOAT)
        if architecture.variant == "gen":
            self._choices(self._lm_head(hidden))
        else:
            self._stream_heads(hidden)
        for cache in self.caches:
            graph.output(cache.present, CACHE_TYPES[cache.dtype], dims)

    def _embed(self, ids: str) -> str:
        table = self.graph.weight(EMBEDDING, self.half.array(self.tensors.float32(EMBEDDING)))
        if self.form.has_half_residual:
            return self.graph.op("Gather", [table, ids], name=EMBEDDED)
        return self.graph.op("Cast", [self.graph.op("Gather", [table, ids])], name=EMBEDDED, to=FLOAT)

    def _paged_block(self, layer: int, stream: Residual) -> Residual:
        hidden, rows = self._join(stream, block_tensor(layer, "input_layernorm"))
        context = self._paged_attention(layer, rows)
        if layer == self.architecture.layers - 1:
            # After the last attention no token reads another, so the rest runs for the asked tokens alone.
            hidden, context = (self.graph.op("Gather", [each, GRAPH_LOGIT_INDEX]) for each in (hidden, context))
        attended = self._product(context, block_tensor(layer, "self_attn.o_proj"))
        stream = Residual(hidden, self._to_residual(attended), after_attention(layer))
        hidden, rows = self._join(stream, block_tensor(layer, "post_attention_layernorm"))
        return Residual(hidden, self._to_residual(self._fed(layer, rows)), after_feed_forward(layer))

    def _join(self, stream: Residual, norm: str) -> tuple[str, str]:
        """Adds the update; returns the residual stream, and its norm in the type of the weights."""
        weight = self.tensors.float32(norm)
        scale = self.graph.weight(norm, self.half.array(weight) if self.form.has_half_residual else weight)
        epsilon = self.architecture.rms_eps
        if stream.update is None:
            hidden = stream.hidden
            normed = self.graph.op("RMSNormalization", [hidden, scale], axis=-1, epsilon=epsilon)
        else:
            hidden = stream.total
            normed = self.graph.add_and_norm(stream.hidden, stream.update, scale, total=hidden, epsilon=epsilon)
        if norm == FINAL_NORM or self.form.has_half_residual:
            return hidden, normed
        return hidden, self.graph.op("Cast", [normed], to=self.half.onnx)

    def _to_residual(self, update: str) -> str:
        return update if self.form.has_half_residual else self.graph.op("Cast", [update], to=FLOAT)

    def _paged_attention(self, layer: int, rows: str) -> str:
        """[tokens, hidden] -> [tokens, query_heads * head_dim]."""
        graph, architecture = self.graph, self.architecture
        names = [block_tensor(layer, f"self_attn.{part}_proj") for part in "qkv"]
        packed = self._product(rows, block_tensor(layer, "self_attn.qkv_proj"), names)
        tables = zip(ROTATIONS, unpaged.rope_tables(architecture), strict=True)
        cos, sin = (graph.weight(name, self.half.array(table)) for name, table in tables)
        norms = [block_tensor(layer, f"self_attn.{part}_norm") for part in "qk"]
        q_norm, k_norm = (graph.weight(name, self.half.array(self.tensors.float32(name))) for name in norms)
        keys, values = (cache for cache in self.caches if cache.layer == layer)
        return graph.in_place(
            PAGED_ATTENTION,
            [
                *(packed, "", "", keys.past, values.past),
                *(GRAPH_ROW_STARTS, GRAPH_POSITIONS, GRAPH_PAGES, cos, sin),
                *("", "", q_norm, k_norm, "", "", GRAPH_BOUNDS),
            ],
            presents=[keys.present, values.present],
            num_heads=architecture.query_heads,
            kv_num_heads=architecture.kv_heads,
            scale=float(architecture.head_dim**-0.5),
            do_rotary=1,
            qk_norm_epsilon=architecture.rms_eps,
        )

    def _fed(self, layer: int, rows: str) -> str:
        """down(silu(gate) * up), all in the type of the weights."""
        graph = self.graph
        gate, up = (self._product(rows, block_tensor(layer, f"mlp.{part}_proj")) for part in ("gate", "up"))
        silu = graph.op("QuickGelu", [gate], domain=CONTRIB, alpha=1.0)
        return self._product(graph.op("Mul", [silu, up]), block_tensor(layer, "mlp.down_proj"))

    def _product(self, rows: str, name: str, parts: Sequence[str] = ()) -> str:
        """Multiplies by the matrix `name`, or by the matrices `parts`, which become one matrix of that name."""
        matrix = np.concatenate([self.tensors.float32(part) for part in parts or [name]])
        return self.graph.op("MatMul", [rows, self.graph.weight(name, self.half.array(matrix.T))])
