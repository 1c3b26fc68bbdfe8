"""The Qwen3 graph: one block, repeated, over KV slots; Gen's or Stream's logits on top.

Row r's token t stands at positions[r] + t. Its key and value go into slot r at that index, and it attends to
the indices up to its own, so padding on the right (and whatever a slot held there before) is never seen. The
caller keeps positions[r] + tokens <= capacity for every row, padding included: TensorScatter refuses anything
else. Slots must hold finite numbers (start them at zero): a hidden NaN times a share of 0 is still NaN.

Formulas: transformers' modeling_qwen3.py; the heads from the model cards of Qwen3Guard-Stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from onnx import TensorProto
from qwen3guard_client.manifest import (
    GEN_OUTPUTS,
    GRAPH,
    INPUT_IDS,
    LOGIT_INDEX,
    POSITIONS,
    past_name,
    present_name,
)

from qwen3guard_export.attention import Attention, AttentionForm, attention, scatter
from qwen3guard_export.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    Architecture,
    Checkpoint,
    block_tensor,
)
from qwen3guard_export.emitter import Emitter
from qwen3guard_export.quantize import Activation, Product, WeightFormat, activation, linear
from qwen3guard_export.weight_files import FloatArray

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def write_graph(checkpoint: Checkpoint, folder: Path, weights: WeightFormat, form: AttentionForm) -> None:
    """Writes model.onnx and model.onnx.data into `folder`. Raises CorruptFile if a weight cannot be read."""
    with Emitter(folder, GRAPH) as graph:
        _Qwen3(graph, checkpoint, weights, form).emit()
        graph.finish(f"qwen3guard_{checkpoint.architecture.variant}")


def rope_tables(architecture: Architecture) -> tuple[FloatArray, FloatArray]:
    """cos and sin, float32 [context, head_dim / 2], of position * theta^(-2i / head_dim)."""
    exponents = np.arange(0, architecture.head_dim, 2, dtype=np.float32) / np.float32(architecture.head_dim)
    frequencies = (1.0 / architecture.rope_theta**exponents).astype(np.float32)
    angles = np.arange(architecture.context, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


@dataclass(frozen=True)
class _Places:
    """Where tokens stand: `rope` int64 [rows, tokens] row numbers of the cos and sin tables."""

    rope: str
    cos: str
    sin: str
    positions: str
    logit_index: str


class _Qwen3:
    def __init__(self, graph: Emitter, checkpoint: Checkpoint, weights: WeightFormat, form: AttentionForm) -> None:
        self.graph = graph
        self.tensors = checkpoint.weights
        self.architecture = checkpoint.architecture
        self.weights = weights
        self.form = form

    def emit(self) -> None:
        graph, architecture = self.graph, self.architecture
        ids = graph.input(INPUT_IDS, INT64, ["rows", "tokens"])
        positions = graph.input(POSITIONS, INT64, ["rows"])
        logit_index = graph.input(LOGIT_INDEX, INT64, ["asked", 2])
        slot: list[int | str] = ["rows", architecture.kv_heads, "capacity", architecture.head_dim]
        for layer in range(architecture.layers):
            graph.input(past_name(layer, "key"), FLOAT, slot)
            graph.input(past_name(layer, "value"), FLOAT, slot)
        places, attend = self._places(ids, positions, logit_index)
        hidden = self._embed(ids)
        for layer in range(architecture.layers):
            hidden = self._block(layer, hidden, places, attend)
        hidden = self._norm(hidden, FINAL_NORM)
        if architecture.variant == "gen":
            graph.output(self._lm_head(hidden), FLOAT, ["asked", architecture.vocab])
        else:
            self._stream_heads(hidden)
        for layer in range(architecture.layers):
            graph.output(present_name(layer, "key"), FLOAT, slot)
            graph.output(present_name(layer, "value"), FLOAT, slot)

    def _places(self, ids: str, positions: str, logit_index: str) -> tuple[_Places, Attention]:
        graph, architecture = self.graph, self.architecture
        tokens = graph.op("Squeeze", [graph.op("Shape", [ids], start=1, end=2)])
        steps = graph.op("Range", [graph.scalar(0, np.int64), tokens, graph.scalar(1, np.int64)])
        absolute = graph.op("Add", [graph.op("Unsqueeze", [positions, graph.ints(1)]), steps])
        capacity = graph.op("Shape", [past_name(0, "key")], start=2, end=3)
        attend = attention(
            graph,
            self.form,
            query_heads=architecture.query_heads,
            kv_heads=architecture.kv_heads,
            head_dim=architecture.head_dim,
            places=absolute,
            capacity=capacity,
        )
        # Padding may stand beyond the last position that has a rotation; any rotation does for it.
        last = graph.scalar(architecture.context - 1, np.int64)
        cos, sin = rope_tables(architecture)
        places = _Places(
            rope=graph.op("Min", [absolute, last]),
            cos=graph.weight("rope.cos", cos),
            sin=graph.weight("rope.sin", sin),
            positions=positions,
            logit_index=logit_index,
        )
        return places, attend

    def _embed(self, ids: str) -> str:
        """fp32 graphs hold the table in float32; the others as the checkpoint stores it, so nothing is lost."""
        if self.weights == "fp32":
            return self.graph.op("Gather", [self.graph.weight(EMBEDDING, self.tensors.float32(EMBEDDING)), ids])
        table = self.graph.weight(EMBEDDING, self.tensors.stored(EMBEDDING))
        return self.graph.op("Cast", [self.graph.op("Gather", [table, ids])], to=FLOAT)

    def _block(self, layer: int, hidden: str, places: _Places, attend: Attention) -> str:
        graph = self.graph
        rows = self._norm(hidden, block_tensor(layer, "input_layernorm"))
        context = self._attention(layer, rows, places, attend)
        if layer == self.architecture.layers - 1:
            # From here on a token meets no other: the last half-block runs for the asked tokens alone.
            hidden = graph.op("GatherND", [hidden, places.logit_index])
            context = graph.op("GatherND", [context, places.logit_index])
        inputs = activation(graph, self.weights, context)
        attended = self._linear(inputs, block_tensor(layer, "self_attn.o_proj"))
        hidden = graph.op("Add", [hidden, attended.scaled(graph)])
        rows = self._norm(hidden, block_tensor(layer, "post_attention_layernorm"))
        return graph.op("Add", [hidden, self._feed_forward(layer, rows)])

    def _attention(self, layer: int, rows: str, places: _Places, attend: Attention) -> str:
        graph, architecture = self.graph, self.architecture
        inputs = activation(graph, self.weights, rows)
        heads: dict[str, str] = {}
        for part, count in (
            ("q", architecture.query_heads),
            ("k", architecture.kv_heads),
            ("v", architecture.kv_heads),
        ):
            name = block_tensor(layer, f"self_attn.{part}_proj")
            projected = self._linear(inputs, name).scaled(graph)
            split = graph.op("Reshape", [projected, graph.ints(0, 0, count, architecture.head_dim)])
            if part != "v":
                split = self._norm(split, block_tensor(layer, f"self_attn.{part}_norm"))
            heads[part] = graph.op("Transpose", [split], perm=[0, 2, 1, 3])
            if part != "v":
                heads[part] = graph.op("RotaryEmbedding", [heads[part], places.cos, places.sin, places.rope])
        keys = scatter(graph, past_name(layer, "key"), heads["k"], places.positions, present_name(layer, "key"))
        values = scatter(graph, past_name(layer, "value"), heads["v"], places.positions, present_name(layer, "value"))
        return attend.emit(graph, heads["q"], keys, values)

    def _feed_forward(self, layer: int, rows: str) -> str:
        """down(silu(gate) * up). The row scale of `up` waits for that of `down`'s input."""
        graph = self.graph
        inputs = activation(graph, self.weights, rows)
        gate = self._linear(inputs, block_tensor(layer, "mlp.gate_proj")).scaled(graph)
        up = self._linear(inputs, block_tensor(layer, "mlp.up_proj"))
        gated = graph.op("Mul", [graph.op("Mul", [gate, graph.op("Sigmoid", [gate])]), up.values])
        inputs = activation(graph, self.weights, gated, pending=up.row_scale)
        return self._linear(inputs, block_tensor(layer, "mlp.down_proj")).scaled(graph)

    def _lm_head(self, hidden: str) -> str:
        """float32 [asked, hidden] -> logits [asked, vocab]."""
        graph, (logits,) = self.graph, GEN_OUTPUTS
        if self.weights == "fp32" and self.architecture.tied:
            return graph.op("Gemm", [hidden, EMBEDDING], name=logits, transB=1)
        name = EMBEDDING if self.architecture.tied else LM_HEAD
        product = self._linear(activation(graph, self.weights, hidden), name)
        return graph.op("Identity", [product.scaled(graph)], name=logits)

    def _stream_heads(self, hidden: str) -> None:
        """RMSNorm(pre(hidden)) -> logits, in float32 whatever the weight format: they are small and decide."""
        graph, prepared = self.graph, dict[str, str]()
        for head in self.architecture.heads:
            if head.pre not in prepared:
                pre = graph.op("MatMul", [hidden, graph.weight(head.pre, self.tensors.float32(head.pre).T)])
                prepared[head.pre] = self._norm(pre, head.layernorm)
            matrix = self.tensors.float32(head.tensor)[list(head.rows)]
            graph.op("MatMul", [prepared[head.pre], graph.weight(head.tensor, matrix.T)], name=head.output)
            graph.output(head.output, FLOAT, ["asked", len(head.rows)])

    def _norm(self, rows: str, name: str) -> str:
        scale = self.graph.weight(name, self.tensors.float32(name))
        return self.graph.op("RMSNormalization", [rows, scale], axis=-1, epsilon=self.architecture.rms_eps)

    def _linear(self, inputs: Activation, name: str) -> Product:
        return linear(self.graph, self.weights, inputs, name, partial(self.tensors.float32, name))
