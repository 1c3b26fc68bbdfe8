"""Qwen3Guard in plain numpy, in float32: the reference for every exported graph.

It shares no code with the graph: it has no cache and no ONNX, and computes full causal attention over whole sequences,
with one layer's weights in memory at a time. The formulas are those of transformers' modeling_qwen3.py and of the model
cards of Qwen3Guard-Stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.manifest import GEN_OUTPUTS

from qwen3guard_export.checkpoint.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    Architecture,
    Checkpoint,
    block_tensor,
)
from qwen3guard_export.checkpoint.weight_files import FloatArray

Tokens = npt.NDArray[np.int64]


def reference_logits(
    checkpoint: Checkpoint, rows: Sequence[Tokens], asked: Sequence[int] | None = None
) -> list[dict[str, FloatArray]]:
    """The outputs by name of each row of token ids [tokens], float32 [tokens, n], from the row's token `asked` on."""
    architecture, read = checkpoint.architecture, checkpoint.weights.float32
    states = final_states(checkpoint, rows)
    states = [state[first:] for state, first in zip(states, asked or [0] * len(rows), strict=True)]
    lengths = np.cumsum([len(state) for state in states])[:-1]
    hidden = np.concatenate(states)
    if architecture.variant == "gen":
        outputs = {GEN_OUTPUTS[0]: hidden @ read(EMBEDDING if architecture.tied else LM_HEAD).T}
    else:
        outputs = {}
        for head in architecture.stream_heads:
            inner = _rms_norm(hidden @ read(head.pre).T, read(head.layernorm), architecture.rms_eps)
            outputs[head.output] = (inner @ read(head.tensor).T)[:, list(head.rows)]
    split = {name: np.split(values, lengths) for name, values in outputs.items()}
    return [{name: split[name][row] for name in split} for row in range(len(rows))]


def final_states(checkpoint: Checkpoint, rows: Sequence[Tokens]) -> list[FloatArray]:
    """The states of each row of token ids [tokens] after the final norm, which the heads read: float32 [tokens,
    hidden]."""
    architecture, read = checkpoint.architecture, checkpoint.weights.float32
    table = checkpoint.weights.stored(EMBEDDING)
    states = [table[row].astype(np.float32) for row in rows]
    del table
    for layer in range(architecture.layers):
        block = {name: read(name) for name in architecture.block_shapes(layer)}
        states = [_block(architecture, block, layer, state) for state in states]
    return [_rms_norm(state, read(FINAL_NORM), architecture.rms_eps) for state in states]


def _block(architecture: Architecture, block: dict[str, FloatArray], layer: int, state: FloatArray) -> FloatArray:
    def weight(part: str) -> FloatArray:
        return block[block_tensor(layer, part)]

    eps, tokens = architecture.rms_eps, len(state)
    x = _rms_norm(state, weight("input_layernorm"), eps)
    q = (x @ weight("self_attn.q_proj").T).reshape(tokens, architecture.query_heads, -1)
    k = (x @ weight("self_attn.k_proj").T).reshape(tokens, architecture.kv_heads, -1)
    v = (x @ weight("self_attn.v_proj").T).reshape(tokens, architecture.kv_heads, -1)
    q = _rotate(_rms_norm(q, weight("self_attn.q_norm"), eps), architecture.rope_theta)
    k = _rotate(_rms_norm(k, weight("self_attn.k_norm"), eps), architecture.rope_theta)
    group = architecture.query_heads // architecture.kv_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    q, k, v = (each.transpose(1, 0, 2) for each in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(architecture.head_dim))
    scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    context = (shares @ v).transpose(1, 0, 2).reshape(tokens, -1)
    state = state + context @ weight("self_attn.o_proj").T
    x = _rms_norm(state, weight("post_attention_layernorm"), eps)
    gate = x @ weight("mlp.gate_proj").T
    with np.errstate(over="ignore"):  # exp of a very negative gate: the quotient is 0, as it should be
        gate = gate / (1 + np.exp(-gate))
    gated: FloatArray = gate * (x @ weight("mlp.up_proj").T)
    down: FloatArray = gated @ weight("mlp.down_proj").T
    return state + down


def _rms_norm(x: FloatArray, weight: FloatArray, eps: float) -> FloatArray:
    mean = np.mean(x * x, axis=-1, keepdims=True)
    scaled: FloatArray = x / np.sqrt(mean + np.float32(eps)) * weight
    return scaled


def _rotate(x: FloatArray, theta: float) -> FloatArray:
    """Rotates x [tokens, heads, head_dim] by position; a pair is a channel of each half of a head."""
    tokens, _, head_dim = x.shape
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = np.tile(np.outer(np.arange(tokens), frequencies), 2)[:, None, :]
    first, second = np.split(x, 2, axis=-1)
    turned = np.concatenate([-second, first], axis=-1)
    rotated: FloatArray = (x * np.cos(angles) + turned * np.sin(angles)).astype(np.float32)
    return rotated
