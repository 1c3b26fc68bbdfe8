"""Writes the Qwen3 graph: one block, repeated, over KV slots, with Gen's or Stream's logits on top.

Token t of row r stands at positions[r] + t. Its key and value go into slot r at that index, and it attends to the
indices up to its own. So no token sees the padding on the right, or what a slot held there before. The caller keeps
positions[r] + tokens <= capacity for every row, padding included; TensorScatter refuses anything else. Slots must hold
finite numbers (zeros at the start): a hidden NaN times a share of 0 is still NaN.

The paged forms have a graph of their own, in `paged`.

The formulas are those of transformers' modeling_qwen3.py, and for the heads those of Qwen3Guard-Stream's model cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto
from qwen3guard_contract.forms import Form
from qwen3guard_contract.manifest import (
    GEN_CHOICES,
    GEN_OUTPUTS,
    GRAPH_CANDIDATES,
    GRAPH_INPUT_IDS,
    GRAPH_LOGIT_INDEX,
    GRAPH_POSITIONS,
)

from qwen3guard_export.checkpoint.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    Architecture,
    Checkpoint,
    block_tensor,
)
from qwen3guard_export.checkpoint.weight_files import FloatArray
from qwen3guard_export.graph.attention import Attention, attention, kv_caches
from qwen3guard_export.graph.emitter import Emitter
from qwen3guard_export.graph.quantize import HALVES, Activation, Product, activation, linear

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
CACHE_TYPES = {
    "float32": FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
}


EMBEDDED = "residual.embedded"
"""The name of the residual stream before the first layer."""
ROTATIONS = ("rope.cos", "rope.sin")


def after_attention(layer: int) -> str:
    """The name of the residual stream after the attention of `layer`, float32 [rows, tokens, hidden].

    In the last layer it is [asked, hidden], as everything after it.
    """
    return f"residual.{layer}.attention"


def after_feed_forward(layer: int) -> str:
    """The name of the residual stream after the whole `layer`, in the same shape."""
    return f"residual.{layer}.feed_forward"


def rope_tables(architecture: Architecture) -> tuple[FloatArray, FloatArray]:
    """cos and sin, float32 [context, head_dim / 2], of position * theta^(-2i / head_dim)."""
    exponents = np.arange(0, architecture.head_dim, 2, dtype=np.float32) / np.float32(architecture.head_dim)
    frequencies = (1.0 / architecture.rope_theta**exponents).astype(np.float32)
    angles = np.arange(architecture.context, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


@dataclass(frozen=True)
class _Positions:
    """Names of tensors that tell where tokens stand.

    `rope` int64 [rows, tokens] are the tokens' rows in the tables `cos` and `sin`; `logit_index` int64 [asked, 2] are
    the row and the token of each asked token.
    """

    rope: str
    cos: str
    sin: str
    logit_index: str


@dataclass(frozen=True)
class Residual:
    """The residual stream [..., hidden], with an update that is not added yet. `total` is the name of their sum."""

    hidden: str
    update: str | None = None
    total: str = EMBEDDED


class Qwen3:
    def __init__(self, graph: Emitter, checkpoint: Checkpoint, form: Form) -> None:
        self.graph = graph
        self.tensors = checkpoint.weights
        self.architecture = checkpoint.architecture
        self.weights = form.weights
        self.form = form
        self.caches = kv_caches(form, checkpoint.architecture)

    def emit(self) -> None:
        graph, architecture = self.graph, self.architecture
        ids = graph.input(GRAPH_INPUT_IDS, INT64, ["rows", "tokens"])
        positions = graph.input(GRAPH_POSITIONS, INT64, ["rows"])
        logit_index = graph.input(GRAPH_LOGIT_INDEX, INT64, ["asked", 2])
        for cache in self.caches:
            graph.input(cache.past, CACHE_TYPES[cache.dtype], ["rows", *cache.dims])
        shared, attend = self._positions(ids, positions, logit_index)
        stream = Residual(self._embed(ids))
        for layer in range(architecture.layers):
            stream = self._block(layer, stream, shared, attend)
        _, hidden = self._join(stream, FINAL_NORM)
        if architecture.variant == "gen":
            logits = self._lm_head(hidden)
            graph.output(logits, FLOAT, ["asked", architecture.vocab])
            self._choices(logits)
        else:
            self._stream_heads(hidden)
        for cache in self.caches:
            graph.output(cache.present, CACHE_TYPES[cache.dtype], ["rows", *cache.dims])

    def _positions(self, ids: str, positions: str, logit_index: str) -> tuple[_Positions, Attention]:
        graph, architecture = self.graph, self.architecture
        tokens = graph.op("Squeeze", [graph.op("Shape", [ids], start=1, end=2)])
        steps = graph.op("Range", [graph.scalar(0, np.int64), tokens, graph.scalar(1, np.int64)])
        absolute = graph.op("Add", [graph.op("Unsqueeze", [positions, graph.ints(1)]), steps])
        first = self.caches[0]
        capacity = graph.op("Shape", [first.past], start=first.cell_axis, end=first.cell_axis + 1)
        attend = attention(
            graph,
            self.form,
            query_heads=architecture.query_heads,
            kv_heads=architecture.kv_heads,
            head_dim=architecture.head_dim,
            positions=positions,
            token_positions=absolute,
            capacity=capacity,
        )
        # Padding may stand after the last position that has a rotation; its own rotation does not matter.
        last = graph.scalar(architecture.context - 1, np.int64)
        cos, sin = rope_tables(architecture)
        shared = _Positions(
            rope=graph.op("Min", [absolute, last]),
            cos=graph.weight(ROTATIONS[0], cos),
            sin=graph.weight(ROTATIONS[1], sin),
            logit_index=logit_index,
        )
        return shared, attend

    def _embed(self, ids: str) -> str:
        """The table is in the type of the weight format; with integer weights it is as the checkpoint stores it."""
        if self.form.is_float32:
            table = self.graph.weight(EMBEDDING, self.tensors.float32(EMBEDDING))
            return self.graph.op("Gather", [table, ids], name=EMBEDDED)
        if half := HALVES.get(self.weights):
            table = self.graph.weight(EMBEDDING, half.array(self.tensors.float32(EMBEDDING)))
        else:
            table = self.graph.weight(EMBEDDING, self.tensors.stored(EMBEDDING))
        return self.graph.op("Cast", [self.graph.op("Gather", [table, ids])], name=EMBEDDED, to=FLOAT)

    def _block(self, layer: int, stream: Residual, positions: _Positions, attend: Attention) -> Residual:
        graph = self.graph
        architecture = self.architecture
        hidden, rows = self._join(stream, block_tensor(layer, "input_layernorm"))
        context = self._attention(layer, rows, positions, attend)
        if layer == architecture.layers - 1:
            # After the last attention no token reads another, so the rest runs for the asked tokens alone.
            hidden = graph.op("GatherND", [hidden, positions.logit_index])
            context = graph.op("GatherND", [context, positions.logit_index])
        rows_key = "asked" if layer == architecture.layers - 1 else "tokens"
        inputs = activation(
            graph, self.weights, context, architecture.query_heads * architecture.head_dim, rows_key=rows_key
        )
        attended = self._linear(inputs, block_tensor(layer, "self_attn.o_proj"))
        stream = Residual(hidden, attended.scaled(graph), after_attention(layer))
        hidden, rows = self._join(stream, block_tensor(layer, "post_attention_layernorm"))
        return Residual(hidden, self._feed_forward(layer, rows, rows_key), after_feed_forward(layer))

    def _join(self, stream: Residual, norm: str) -> tuple[str, str]:
        """Adds the update; returns the residual stream and its norm."""
        graph = self.graph
        if stream.update is None:
            return stream.hidden, self._norm(stream.hidden, norm)
        if self.form.is_standard:
            hidden = graph.op("Add", [stream.hidden, stream.update], name=stream.total)
            return hidden, self._norm(hidden, norm)
        scale = graph.weight(norm, self.tensors.float32(norm))
        normed = graph.add_and_norm(
            stream.hidden, stream.update, scale, total=stream.total, epsilon=self.architecture.rms_eps
        )
        return stream.total, normed

    def _attention(self, layer: int, rows: str, positions: _Positions, attend: Attention) -> str:
        graph, architecture = self.graph, self.architecture
        query_heads, kv_heads, size = architecture.query_heads, architecture.kv_heads, architecture.head_dim
        # A number that is not finite stays in the residual stream, but integers would hide it from the tokens that
        # attend to this one. So the keys of the last layer become NaN.
        last = layer == architecture.layers - 1
        inputs = activation(graph, self.weights, rows, architecture.hidden, rows_key="tokens", finite=last)
        names = [block_tensor(layer, f"self_attn.{part}_proj") for part in "qkv"]
        projected = self._linear(inputs, block_tensor(layer, "self_attn.qkv_proj"), names).scaled(graph)
        turning, values = graph.split(projected, [(query_heads + kv_heads) * size, kv_heads * size], axis=2)
        turning = graph.op("Reshape", [turning, graph.ints(0, 0, query_heads + kv_heads, size)])
        turning = graph.op("Transpose", [self._norm_heads(layer, turning)], perm=[0, 2, 1, 3])
        turned = graph.op("RotaryEmbedding", [turning, positions.cos, positions.sin, positions.rope])
        values = graph.op("Reshape", [values, graph.ints(0, 0, kv_heads, size)])
        own = [cache for cache in self.caches if cache.layer == layer]
        return attend.emit(own, turned, graph.op("Transpose", [values], perm=[0, 2, 1, 3]))

    def _norm_heads(self, layer: int, heads: str) -> str:
        """Norms heads [rows, tokens, query_heads + kv_heads, head_dim], each by itself, with q_norm or k_norm."""
        architecture = self.architecture
        counts = [architecture.query_heads, architecture.kv_heads]
        names = [block_tensor(layer, f"self_attn.{part}_norm") for part in "qk"]
        if not self.form.uses_cpu_operators:
            parts = self.graph.split(heads, counts, axis=2)
            normed = [self._norm(part, name) for part, name in zip(parts, names, strict=True)]
            return self.graph.op("Concat", normed, axis=2)
        # On a CPU, ONNX Runtime also takes a scale for each head; the standard allows one of the last axis alone.
        scales = [np.tile(self.tensors.float32(name), (count, 1)) for name, count in zip(names, counts, strict=True)]
        scale = self.graph.weight(block_tensor(layer, "self_attn.qk_norm"), np.concatenate(scales))
        return self.graph.op("RMSNormalization", [heads, scale], axis=-1, epsilon=architecture.rms_eps)

    def _feed_forward(self, layer: int, rows: str, rows_key: str) -> str:
        """down(silu(gate) * up). The row scale of `up` is applied together with that of `down`'s input."""
        graph = self.graph
        inputs = activation(graph, self.weights, rows, self.architecture.hidden, rows_key=rows_key)
        gate = self._linear(inputs, block_tensor(layer, "mlp.gate_proj")).scaled(graph)
        up = self._linear(inputs, block_tensor(layer, "mlp.up_proj"))
        gated = graph.op("Mul", [graph.op("Mul", [gate, graph.op("Sigmoid", [gate])]), up.values])
        inputs = activation(graph, self.weights, gated, self.architecture.ffn, rows_key=rows_key, pending=up.row_scale)
        return self._linear(inputs, block_tensor(layer, "mlp.down_proj")).scaled(graph)

    def _lm_head(self, hidden: str) -> str:
        """float32 [asked, hidden] -> logits [asked, vocab]."""
        graph, (logits,) = self.graph, GEN_OUTPUTS
        if self.form.is_float32 and self.architecture.tied:
            return graph.op("Gemm", [hidden, EMBEDDING], name=logits, transB=1)
        if self.weights in HALVES and self.architecture.tied:
            inputs = activation(graph, self.weights, hidden, self.architecture.hidden, rows_key="asked")
            return graph.op("Cast", [graph.op("Gemm", [inputs.rows, EMBEDDING], transB=1)], name=logits, to=FLOAT)
        name = EMBEDDING if self.architecture.tied else LM_HEAD
        inputs = activation(graph, self.weights, hidden, self.architecture.hidden, rows_key="asked", finite=True)
        product = self._linear(inputs, name)
        return graph.op("Identity", [product.scaled(graph)], name=logits)

    def _choices(self, logits: str) -> None:
        """What greedy decoding needs of logits [asked, vocab] (`GEN_CHOICES`), so that no more is copied.

        A TopK of one is the maximum for which ONNX Runtime's CUDA provider does not need cuDNN. It chooses among the
        logits, and not among their log-probabilities, which may be equal where logits are not.
        """
        graph, (choices, candidate_logits) = self.graph, GEN_CHOICES
        candidates = graph.input(GRAPH_CANDIDATES, INT32, ["candidates"])
        largest, token = graph.largest(logits)
        nothing = graph.op("Mul", [logits, graph.scalar(0.0, np.float32)])
        nan_or_zero = graph.op("ReduceSum", [nothing, graph.ints(-1)], keepdims=1)
        logprob = graph.op("GatherElements", [graph.op("LogSoftmax", [logits], axis=-1), token], axis=1)
        parts = [graph.op("Cast", [token], to=FLOAT), largest, graph.op("Add", [logprob, nan_or_zero])]
        graph.op("Concat", parts, name=choices, axis=1)
        graph.op("Gather", [logits, candidates], name=candidate_logits, axis=1)
        graph.output(choices, FLOAT, ["asked", 3])
        graph.output(candidate_logits, FLOAT, ["asked", "candidates"])

    def _stream_heads(self, hidden: str) -> None:
        """RMSNorm(pre(hidden)) -> logits, always in float32: the heads are small, and they decide the verdict."""
        graph, prepared = self.graph, dict[str, str]()
        for head in self.architecture.stream_heads:
            if head.pre not in prepared:
                pre = graph.op("MatMul", [hidden, graph.weight(head.pre, self.tensors.float32(head.pre).T)])
                prepared[head.pre] = self._norm(pre, head.layernorm)
            matrix = self.tensors.float32(head.tensor)[list(head.rows)]
            graph.op("MatMul", [prepared[head.pre], graph.weight(head.tensor, matrix.T)], name=head.output)
            graph.output(head.output, FLOAT, ["asked", len(head.rows)])

    def _norm(self, rows: str, name: str) -> str:
        scale = self.graph.weight(name, self.tensors.float32(name))
        return self.graph.op("RMSNormalization", [rows, scale], axis=-1, epsilon=self.architecture.rms_eps)

    def _linear(self, inputs: Activation, name: str, parts: Sequence[str] = ()) -> Product:
        """Multiplies by the matrix `name`, or by the matrices `parts`, which become one matrix of that name."""

        def matrix() -> FloatArray:
            return np.concatenate([self.tensors.float32(part) for part in parts or [name]])

        return linear(self.graph, self.weights, inputs, name, matrix)
