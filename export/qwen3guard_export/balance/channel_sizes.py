"""Measures how large each channel is on a few texts: one pass in numpy, with one matrix in memory at a time.

Only `balance` uses these sizes. A wrong number here would cost accuracy, but would not change what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qwen3guard_export.checkpoint.checkpoint import EMBEDDING, FINAL_NORM, Architecture, Checkpoint, block_tensor
from qwen3guard_export.checkpoint.weight_files import FloatArray
from qwen3guard_export.proof.reference import Tokens

_ComplexArray = npt.NDArray[np.complex64]
_BLOCK = 1 << 22  # numbers of a matrix that are squared at a time


@dataclass(frozen=True)
class ChannelSizes:
    """The root mean square of each channel of one layer over all tokens, float32.

    `attention_input` and `ffn_input` [hidden] are measured after their norms. `queries` and `keys` [head_dim / 2] are
    of the lengths of the rotated pairs, over all heads. `values` is [kv_heads * head_dim], and `down_input` [ffn].
    """

    attention_input: FloatArray
    queries: FloatArray
    keys: FloatArray
    values: FloatArray
    ffn_input: FloatArray
    down_input: FloatArray


def channel_sizes(checkpoint: Checkpoint, rows: Sequence[Tokens]) -> tuple[list[ChannelSizes], FloatArray]:
    """The sizes of each layer, and of the final norm's output, float32 [hidden], over `rows` of token ids int64
    [tokens].

    Raises CorruptFile if a weight cannot be read.
    """
    architecture, read = checkpoint.architecture, checkpoint.weights.float32
    state = checkpoint.weights.stored(EMBEDDING)[np.concatenate(rows)].astype(np.float32)
    layers = []
    for layer in range(architecture.layers):
        state, sizes = _Layer(checkpoint, layer, rows).run(state)
        layers.append(sizes)
    return layers, channel_rms(_norm(architecture, state, read(FINAL_NORM)))


def channel_rms(values: FloatArray) -> FloatArray:
    """[..., K] -> [K]: the root mean square of each channel, over all other axes."""
    flat = values.reshape(-1, values.shape[-1])
    rms: FloatArray = np.sqrt(np.mean(flat * flat, axis=0))
    return rms


def column_rms(matrix: FloatArray) -> FloatArray:
    """[N, K] -> float32 [K]: the root mean square of each column, each row in units of its largest number, as s8 has
    it."""
    total = np.zeros(matrix.shape[1], np.float32)
    step = max(1, _BLOCK // matrix.shape[1])
    for start in range(0, len(matrix), step):
        part = matrix[start : start + step]
        largest = np.maximum(part.max(axis=1), -part.min(axis=1))
        units = part / np.where(largest > 0, largest, 1)[:, None]
        total += np.einsum("nk,nk->k", units, units)
    rms: FloatArray = np.sqrt(total / np.float32(len(matrix)))
    return rms


class _Layer:
    """One block, computed over the tokens of all rows together; rows do not attend to each other."""

    def __init__(self, checkpoint: Checkpoint, layer: int, rows: Sequence[Tokens]) -> None:
        self._architecture = checkpoint.architecture
        self._weights = checkpoint.weights
        self._layer = layer
        self._lengths = [len(row) for row in rows]

    def run(self, state: FloatArray) -> tuple[FloatArray, ChannelSizes]:
        """The residual stream [tokens, hidden] after this layer, and the sizes of the channels in the layer."""
        architecture = self._architecture
        attended = _norm(architecture, state, self._read("input_layernorm"))
        queries, keys = (self._pairs(attended, part) for part in "qk")
        values = self._linear(attended, "self_attn.v_proj")
        state = state + self._linear(self._attention(queries, keys, values), "self_attn.o_proj")
        fed = _norm(architecture, state, self._read("post_attention_layernorm"))
        gate = self._linear(fed, "mlp.gate_proj")
        with np.errstate(over="ignore"):  # exp of a very negative gate: the quotient is 0, as it should be
            gate /= 1 + np.exp(-gate)
        gate *= self._linear(fed, "mlp.up_proj")
        sizes = ChannelSizes(
            attention_input=channel_rms(attended),
            queries=channel_rms(np.abs(queries)),
            keys=channel_rms(np.abs(keys)),
            values=channel_rms(values),
            ffn_input=channel_rms(fed),
            down_input=channel_rms(gate),
        )
        return state + self._linear(gate, "mlp.down_proj"), sizes

    def _read(self, part: str) -> FloatArray:
        return self._weights.float32(block_tensor(self._layer, part))

    def _linear(self, inputs: FloatArray, part: str) -> FloatArray:
        product: FloatArray = inputs @ self._read(part).T
        return product

    def _pairs(self, inputs: FloatArray, part: str) -> _ComplexArray:
        """Queries or keys after their norm, [tokens, heads, head_dim / 2]: each rotated pair as one complex number."""
        heads = self._linear(inputs, f"self_attn.{part}_proj").reshape(len(inputs), -1, self._architecture.head_dim)
        first, second = np.split(_norm(self._architecture, heads, self._read(f"self_attn.{part}_norm")), 2, axis=-1)
        return np.asarray(first + 1j * second, np.complex64)

    def _attention(self, queries: _ComplexArray, keys: _ComplexArray, values: FloatArray) -> FloatArray:
        """[tokens, query_heads * head_dim]."""
        architecture, ends = self._architecture, np.cumsum(self._lengths)[:-1]
        values = values.reshape(len(values), architecture.kv_heads, -1)
        parts = zip(*(np.split(each, ends) for each in (queries, keys, values)), strict=True)
        return np.concatenate([self._attend(*part) for part in parts])

    def _attend(self, queries: _ComplexArray, keys: _ComplexArray, values: FloatArray) -> FloatArray:
        architecture, tokens = self._architecture, len(queries)
        exponents = np.arange(0, architecture.head_dim, 2) / architecture.head_dim
        angles = np.outer(np.arange(tokens), architecture.rope_theta**-exponents)[:, None]
        turn = np.exp(1j * angles).astype(np.complex64)
        grouped = (queries * turn).reshape(tokens, architecture.kv_heads, -1, len(exponents)).transpose(1, 2, 0, 3)
        # The real part of q * conj(k), summed over the pairs, is the product of the two vectors.
        scores = (grouped @ np.conj(keys * turn).transpose(1, 2, 0)[:, None]).real
        scores /= np.float32(np.sqrt(architecture.head_dim))
        scores[..., np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        context: FloatArray = shares @ values.transpose(1, 0, 2)[:, None]
        return context.transpose(2, 0, 1, 3).reshape(tokens, -1)


def _norm(architecture: Architecture, rows: FloatArray, weight: FloatArray) -> FloatArray:
    mean = np.mean(rows * rows, axis=-1, keepdims=True)
    normed: FloatArray = rows / np.sqrt(mean + np.float32(architecture.rms_eps)) * weight
    return normed
