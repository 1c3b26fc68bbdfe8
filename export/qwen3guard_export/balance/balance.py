"""Rescales a checkpoint so that eight bits keep it better, and it computes the same: outliers move into their readers.

A trained model has channels that are many times as large as their neighbours. In eight bits a row of activations, a
key, a value and a row of weights each have one scale, so an outlying channel leaves few levels to the others. Between
the tensor that makes a channel and the tensor that reads it, the channel may be divided by any factor and multiplied
again:

    input norm -> q, k, v          post-attention norm -> gate, up          final norm -> lm_head
    up -> down                     v -> o, for each KV head                 k_norm -> q_norm, for each rotated pair

SmoothQuant (arXiv 2211.10438, equation 4 with alpha = 1/2) divides by s = sqrt(activation / weight), which leaves both
equally large. Here the activation is the channel's root mean square over a few texts, not its largest, and the weight
is the root mean square of the column, each row in units of its largest. A channel is moved where s is eight times above
or below the median. s is rounded to a power of two, so float32 rounds nothing, and the balanced checkpoint's results
are the same to the bit. docs/performance.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qwen3guard_export.balance.channel_sizes import ChannelSizes, channel_sizes, column_rms
from qwen3guard_export.checkpoint.checkpoint import EMBEDDING, FINAL_NORM, LM_HEAD, Checkpoint, block_tensor
from qwen3guard_export.checkpoint.weight_files import Array, FloatArray, WeightFiles
from qwen3guard_export.proof.reference import Tokens

_LEAST_EXPONENT = 3
"""The least exponent of a factor. A channel within a few times of the median is no outlier: moving it only changes the
others' rounding. On the demo Gen guard the mean error was 0.0032 with smaller factors too, 0.0017 without them, and
0.0015 without any factor."""
_LARGEST_EXPONENT = 24
"""The largest exponent of a factor: two such factors in a row neither overflow float32 nor lose a bit."""


@dataclass(frozen=True)
class BalancedWeights(WeightFiles):
    """The tensors of `base`, with rows and columns multiplied when a tensor is read.

    `row_factors` [N] multiply the rows of a tensor, or a vector [N]; `column_factors` [K] multiply its columns. Both
    are float32, by the tensor's name.
    """

    base: WeightFiles
    row_factors: dict[str, FloatArray] = field(default_factory=dict)
    column_factors: dict[str, FloatArray] = field(default_factory=dict)

    def stored(self, name: str) -> Array:
        """The tensor in the checkpoint's own dtype, or in float32 where it is multiplied."""
        multiplied = name in self.row_factors or name in self.column_factors
        return self.float32(name) if multiplied else self.base.stored(name)

    def float32(self, name: str) -> FloatArray:
        tensor = self.base.float32(name)
        if name in self.row_factors:
            tensor *= self.row_factors[name].reshape(-1, *[1] * (tensor.ndim - 1))
        if name in self.column_factors:
            tensor *= self.column_factors[name]
        return tensor


def balance(checkpoint: Checkpoint, rows: Sequence[Tokens], *, weights: bool, kv: bool) -> Checkpoint:
    """A checkpoint that computes the same, balanced for products (`weights`) or keys and values (`kv`) of eight bits.

    `rows` are the token ids, int64 [tokens], of a few texts as the guard reads them, some hundreds of tokens in all.
    They decide how accurate eight bits are, and do not change what is computed. With `weights` a tied lm_head becomes a
    tensor of its own, as it is in eight bits anyway. Reads every tensor two or three times, one at a time, and keeps
    the factors alone. Raises CorruptFile if a weight cannot be read, and ValueError if `rows` hold no token.
    """
    if not weights and not kv:
        return checkpoint
    if not sum(map(len, rows)):
        raise ValueError("balancing needs the tokens of at least one text")
    layers, final = channel_sizes(checkpoint, rows)
    balanced = _Balance(checkpoint)
    for layer, sizes in enumerate(layers):
        if weights:
            balanced.norms(layer, sizes)
            balanced.down(layer, sizes)
        if kv:
            balanced.keys(layer, sizes)
        balanced.values(layer, sizes, weights=weights)
    if weights and checkpoint.architecture.variant == "gen":
        balanced.head(final)
    return balanced.checkpoint()


class _Balance:
    """Collects the factors. Each public method is for one kind of tensor and its readers."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._architecture = checkpoint.architecture
        self._base = checkpoint.weights
        self._row_factors: dict[str, FloatArray] = {}
        self._column_factors: dict[str, FloatArray] = {}

    def checkpoint(self) -> Checkpoint:
        weights = BalancedWeights(self._base.tensors, self._base, self._row_factors, self._column_factors)
        return replace(self._checkpoint, architecture=self._architecture, weights=weights)

    def norms(self, layer: int, sizes: ChannelSizes) -> None:
        self._norm(
            block_tensor(layer, "input_layernorm"),
            [block_tensor(layer, f"self_attn.{part}_proj") for part in "qkv"],
            sizes.attention_input,
        )
        self._norm(
            block_tensor(layer, "post_attention_layernorm"),
            [block_tensor(layer, f"mlp.{part}_proj") for part in ("gate", "up")],
            sizes.ffn_input,
        )

    def head(self, sizes: FloatArray) -> None:
        if self._architecture.tied:
            self._architecture = replace(self._architecture, tied=False)
            tensors = self._base.tensors | {LM_HEAD: self._base.tensors[EMBEDDING]}
            self._base = replace(self._base, tensors=tensors)
        self._norm(FINAL_NORM, [LM_HEAD], sizes)

    def down(self, layer: int, sizes: ChannelSizes) -> None:
        maker, reader = block_tensor(layer, "mlp.up_proj"), block_tensor(layer, "mlp.down_proj")
        activations = _at_least(sizes.down_input, _row_norms(self._base.float32(maker)))
        self._divide(maker, factors(activations, column_rms(self._base.float32(reader))), [reader])

    def values(self, layer: int, sizes: ChannelSizes, *, weights: bool) -> None:
        """A channel of a KV head has one column in o_proj for each of its query heads.

        Where o_proj stays in float32, the channels of a head's values are simply made equally large.
        """
        architecture = self._architecture
        maker, reader = (block_tensor(layer, f"self_attn.{part}_proj") for part in "vo")
        activations = _at_least(sizes.values, _row_norms(self._base.float32(maker)))
        shape = (architecture.kv_heads, architecture.query_heads // architecture.kv_heads, architecture.head_dim)
        if weights:
            columns = column_rms(self._base.float32(reader)).reshape(shape)
            divisor = factors(activations, np.sqrt(np.mean(columns * columns, axis=1)).reshape(-1))
        else:
            divisor = factors(activations * activations, np.ones_like(activations))
        self._divide(maker, divisor, [])
        self._column_factors[reader] = np.broadcast_to(divisor.reshape(shape[0], 1, shape[2]), shape).reshape(-1)

    def keys(self, layer: int, sizes: ChannelSizes) -> None:
        """Both channels of a rotated pair have one factor, the same in all heads, which share the norms' weights."""
        divisor = np.tile(factors(sizes.keys, sizes.queries), 2)
        self._divide(block_tensor(layer, "self_attn.k_norm"), divisor, [])
        self._row_factors[block_tensor(layer, "self_attn.q_norm")] = divisor

    def _norm(self, maker: str, readers: Iterable[str], sizes: FloatArray) -> None:
        readers = list(readers)
        matrices = [(self._base.shape(name)[0], column_rms(self._base.float32(name))) for name in readers]
        squares = sum(rows * columns * columns for rows, columns in matrices)
        columns = np.sqrt(squares / np.float32(sum(rows for rows, _ in matrices)))
        self._divide(maker, factors(_at_least(sizes, np.abs(self._base.float32(maker))), columns), readers)

    def _divide(self, maker: str, divisor: FloatArray, readers: Iterable[str]) -> None:
        self._row_factors[maker] = 1 / divisor
        self._column_factors |= dict.fromkeys(readers, divisor)


def factors(activations: FloatArray, weights: FloatArray) -> FloatArray:
    """sqrt(activations / weights) [K], relative to the median, as powers of two; 1 for a channel in which either is 0.

    Equation 4 of SmoothQuant, arXiv 2211.10438, with alpha = 1/2.
    """
    used = (activations > 0) & (weights > 0)
    exponents = np.zeros(activations.shape, np.float32)
    exponents[used] = (np.log2(activations[used]) - np.log2(weights[used])) / 2
    if used.any():
        exponents[used] -= np.median(exponents[used])
    limited = np.clip(np.rint(exponents), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    limited[np.abs(limited) < _LEAST_EXPONENT] = 0
    powers: FloatArray = np.exp2(limited).astype(np.float32)
    return powers


def _at_least(sizes: FloatArray, weights: FloatArray) -> FloatArray:
    """`sizes` [K], where a channel is at least as large, relative to its `weights` [K], as the median channel.

    A channel that is small on these few texts may be large on others.
    """
    used = (sizes > 0) & (weights > 0)
    ratio = np.float32(np.median(sizes[used] / weights[used])) if used.any() else np.float32(0)
    return np.maximum(sizes, ratio * weights)


def _row_norms(matrix: FloatArray) -> FloatArray:
    norms: FloatArray = np.sqrt(np.einsum("nk,nk->n", matrix, matrix))
    return norms
