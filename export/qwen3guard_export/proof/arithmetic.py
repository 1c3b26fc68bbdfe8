"""Computes in plain numpy what an exported graph computes, in the graph's own arithmetic, half a layer at a time.

Integers are multiplied exactly. Floats of two bytes are rounded where the graph rounds them, and may overflow, which
ONNX Runtime's CPU provider would not show, since it computes float16 in float32. So a correct graph differs from this
by float32 rounding alone, and now and then by one level of a quantized number, where rounding changed it. This module
shares no code with the modules that write graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import ml_dtypes
import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import ParityError
from qwen3guard_contract.forms import Form
from qwen3guard_contract.manifest import GEN_OUTPUTS

from qwen3guard_export.checkpoint.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    Architecture,
    Checkpoint,
    block_tensor,
)
from qwen3guard_export.checkpoint.weight_files import Array, FloatArray
from qwen3guard_export.proof.reference import Tokens

_HALVES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
_EXACT_DEPTH = 1024
"""The number of products of s8 by s8 whose sum float32 holds exactly: 1024 * 128 * 127 < 2^24."""
_SHARE_BLOCK = 64
_FLOAT32_LIMIT = 1e30
_SCORE_LIMIT = 1e15


@dataclass(frozen=True)
class Attended:
    """The result of attention on one row.

    `update` [tokens, hidden] is added to the residual stream. `keys` and `values`, float32 [kv_heads, tokens,
    head_dim], are those in the cells, as later tokens read them.
    """

    update: FloatArray
    keys: FloatArray
    values: FloatArray


@dataclass(frozen=True)
class Scores:
    """Logits, float32 [tokens, n], each the product of a token's vector and a row of a matrix; and the lengths of these
    vectors [tokens] and rows [n]. What float32 rounds off a product grows with both lengths, also where it is small."""

    values: FloatArray
    vector_lengths: npt.NDArray[np.float64]
    row_lengths: npt.NDArray[np.float64]


class Arithmetic:
    """The arithmetic of one checkpoint in one weight format and attention form.

    Its methods raise ParityError, with the name of a tensor, where a number leaves its type: the guard cannot be served
    in this form.
    """

    def __init__(self, checkpoint: Checkpoint, form: Form) -> None:
        self._architecture = checkpoint.architecture
        self._tensors = checkpoint.weights
        self._form = form
        self._recent: dict[str, FloatArray] = {}
        self._table: Array | None = None
        self._head_norms = {head.layernorm for head in checkpoint.architecture.stream_heads}
        self.largest_half = 0.0
        """The largest absolute number that was rounded to two bytes."""

    def embedded(self, ids: Tokens) -> FloatArray:
        """The embeddings of `ids`, float32 [tokens, hidden]."""
        if self._table is None:
            self._table = self._tensors.stored(EMBEDDING)
        return self._half(self._table[ids].astype(np.float32), EMBEDDING)

    def attention(self, layer: int, rows: Sequence[FloatArray]) -> list[Attended]:
        """The attention of `layer` on each row of residual states [tokens, hidden], from position 0 on."""
        self._recent.clear()
        lengths = np.cumsum([len(row) for row in rows])[:-1]
        self._bounded_scores(layer)
        normed = self._norm(np.concatenate(rows), block_tensor(layer, "input_layernorm"))
        names = [block_tensor(layer, f"self_attn.{part}_proj") for part in "qkv"]
        self._bounded(block_tensor(layer, "input_layernorm"), names)
        parts = self._linear(normed, names)
        split = zip(*(np.split(part, lengths) for part in parts), strict=True)
        heads = [self._heads(layer, *row) for row in split]
        contexts = [self._context(*row) for row in heads]
        (update,) = self._linear(np.concatenate(contexts), [block_tensor(layer, "self_attn.o_proj")])
        cells = [(self._cells(keys), self._cells(values)) for _, keys, values in heads]
        return [Attended(part, *row) for part, row in zip(np.split(update, lengths), cells, strict=True)]

    def feed_forward(self, layer: int, states: FloatArray) -> FloatArray:
        """What the second half of the layer adds to residual states [tokens, hidden]."""
        self._recent.clear()
        normed = self._norm(states, block_tensor(layer, "post_attention_layernorm"))
        names = [block_tensor(layer, f"mlp.{part}_proj") for part in ("gate", "up")]
        self._bounded(block_tensor(layer, "post_attention_layernorm"), names)
        gate, up = self._linear(normed, names)
        with np.errstate(over="ignore"):  # exp of a very negative gate: the quotient is 0, as it should be
            silu = gate / (1 + np.exp(-gate))
        if self._form.is_paged:
            silu = self._half(silu, f"the gate of layer {layer}")
        gated = silu * up
        (update,) = self._linear(gated, [block_tensor(layer, "mlp.down_proj")])
        return update

    def logits(self, states: FloatArray) -> dict[str, Scores]:
        """The graph's outputs for residual states [tokens, hidden] after the last layer."""
        architecture, read = self._architecture, self._tensors.float32
        hidden = self._norm(states, FINAL_NORM)
        if architecture.variant == "gen":
            name = EMBEDDING if architecture.tied else LM_HEAD
            (logits,) = self._linear(hidden, [name])
            return {GEN_OUTPUTS[0]: Scores(logits, _lengths(hidden), _lengths(read(name)))}
        outputs = {}
        for head in architecture.stream_heads:
            inner, rows = self._norm(hidden @ read(head.pre).T, head.layernorm), read(head.tensor)[list(head.rows)]
            outputs[head.output] = Scores(inner @ rows.T, _lengths(inner), _lengths(rows))
        return outputs

    def _heads(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> tuple[FloatArray, ...]:
        """Queries, keys and values, [heads, tokens, head_dim]; queries and keys are normed and rotated."""
        size, place = self._architecture.head_dim, f"the attention of layer {layer}"
        turned = [
            self._turned(self._norm_heads(part.reshape(len(part), -1, size), layer, name), place)
            for part, name in ((q, "q"), (k, "k"))
        ]
        heads = [part.transpose(1, 0, 2) for part in (*turned, v.reshape(len(v), -1, size))]
        return tuple(self._half(part, place) for part in heads) if self._form.is_two_bytes else tuple(heads)

    def _context(self, queries: FloatArray, keys: FloatArray, values: FloatArray) -> FloatArray:
        """Causal attention over heads [heads, tokens, head_dim] -> [tokens, query_heads * head_dim]."""
        heads, tokens, size = queries.shape
        group = heads // len(keys)
        scale = np.float32(size**-0.5)
        ahead = np.triu(np.full((tokens, tokens), -1e30, np.float32), 1)
        contexts = np.empty((heads, tokens, size), np.float32)
        for head in range(heads):
            key, value = keys[head // group], values[head // group]
            if self._form.has_integer_kv:
                contexts[head] = _context_in_eight_bits(queries[head], key, value, scale, ahead)
                continue
            scores = queries[head] @ key.T * scale + ahead
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            contexts[head] = shares @ value / shares.sum(axis=1, keepdims=True)
        context: FloatArray = contexts.transpose(1, 0, 2).reshape(tokens, heads * size)
        return self._half(context, "the attention") if self._form.is_two_bytes else context

    def _cells(self, heads: FloatArray) -> FloatArray:
        """Keys or values as the cells hold them, in float32."""
        if not self._form.has_integer_kv:
            return heads
        whole, scale = _quantized(heads, 127)
        return whole * scale

    def _norm(self, rows: FloatArray, name: str) -> FloatArray:
        in_half = self._form.has_half_residual and name not in self._head_norms
        return self._normed(rows, name, in_half=in_half)

    def _norm_heads(self, heads: FloatArray, layer: int, name: str) -> FloatArray:
        return self._normed(heads, block_tensor(layer, f"self_attn.{name}_norm"), in_half=self._form.is_paged)

    def _normed(self, rows: FloatArray, name: str, *, in_half: bool) -> FloatArray:
        """The RMS norm, whose scale and result have two bytes if it is `in_half`; it is computed in float32."""
        mean = np.mean(rows * rows, axis=-1, keepdims=True)
        normed: FloatArray = rows / np.sqrt(mean + np.float32(self._architecture.rms_eps))
        scale = self._tensors.float32(name)
        return self._half(normed * self._half(scale, name), f"the norm {name}") if in_half else normed * scale

    def _turned(self, rows: FloatArray, place: str) -> FloatArray:
        """[tokens, heads, head_dim] rotated by each token's position; a pair is a channel of each half of a head.

        A paged attention rounds its tables, its products and their sums.
        """
        rounded = partial(self._half, place=place) if self._form.is_paged else _same
        first, second = np.split(rows, 2, axis=-1)
        tables = rotations(self._architecture, np.arange(len(rows), dtype=np.float32))
        cos, sin = (rounded(each)[:, None] for each in tables)
        turned = [
            rounded(first * cos) - rounded(second * sin),
            rounded(second * cos) + rounded(first * sin),
        ]
        return rounded(np.concatenate(turned, axis=-1))

    def _linear(self, rows: FloatArray, names: Sequence[str]) -> list[FloatArray]:
        """rows [tokens, K] times each matrix [N, K] of `names` -> [tokens, N]."""
        if not self._form.has_integer_weights:
            rows = self._half(rows, f"the input of {names[0]}")
            return [self._half(rows @ self._half(self._matrix(name), name).T, f"what {name} gives") for name in names]
        whole, scale = _quantized(rows, 127)
        return [self._integer_product(whole, self._matrix(name)) * scale for name in names]

    def _matrix(self, name: str) -> FloatArray:
        """The matrix `name`, which is kept until the next half of a layer."""
        if name not in self._recent:
            self._recent[name] = self._tensors.float32(name)
        return self._recent[name]

    @staticmethod
    def _integer_product(whole: FloatArray, matrix: FloatArray) -> FloatArray:
        """Exact sums of integers, times the scale of each row of `matrix`; computed for some rows at a time."""
        product = np.empty((len(whole), len(matrix)), np.float32)
        for start in range(0, len(matrix), 8192):
            rows = matrix[start : start + 8192]
            scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
            levels = np.rint(rows / np.where(scale > 0, scale, np.float32(1)))
            sums = np.zeros((len(whole), len(levels)), np.float64)
            for depth in range(0, whole.shape[1], _EXACT_DEPTH):
                part = slice(depth, depth + _EXACT_DEPTH)
                sums += whole[:, part] @ levels[:, part].T
            product[:, start : start + 8192] = sums.astype(np.float32) * scale[:, 0]
        return product

    def _half(self, numbers: FloatArray, place: str) -> FloatArray:
        """`numbers` rounded to two bytes, if the format has floats of two bytes; `place` is for the error.

        Raises ParityError where a number overflows.
        """
        half = _HALVES.get(self._form.weights)
        if half is None:
            return numbers
        with np.errstate(over="ignore"):
            rounded = numbers.astype(half).astype(np.float32)
        largest = float(np.abs(numbers).max(initial=0))
        if not np.isfinite(rounded).all():
            instead = "bf16" if self._form.weights == "fp16" else "fp32"
            raise ParityError(
                f"{place[0].upper()}{place[1:]} leaves {half.name}: {largest:.3g} on the project's own texts;"
                f" export in {instead}."
            )
        self.largest_half = max(self.largest_half, largest)
        return rounded

    def _bounded_scores(self, layer: int) -> None:
        """Raises ParityError where a score may come near -1e30, the score that hides a cell."""
        # The length of a normed head is at most sqrt(head_dim) times its norm's largest weight, and scores are divided
        # by sqrt(head_dim).
        largest = [
            float(np.abs(self._tensors.float32(block_tensor(layer, f"self_attn.{part}_norm"))).max()) for part in "qk"
        ]
        bound = largest[0] * largest[1] * self._architecture.head_dim**0.5
        if not max(bound, *largest) < _SCORE_LIMIT:
            raise ParityError(f"The scores of layer {layer} may be {bound:.3g}: its norms cannot be a trained guard's.")

    def _bounded(self, norm: str, names: Sequence[str]) -> None:
        """Raises ParityError where a product of a normed row may overflow, since integers would hide an infinity."""
        if not self._form.has_integers:
            return
        # |y| <= |w| |x|, and the length of a normed row is at most sqrt(hidden) times the norm's largest weight.
        largest = float(np.abs(self._tensors.float32(norm)).max())
        for name in names:
            longest = float(np.linalg.norm(self._matrix(name).astype(np.float64), axis=1).max())
            bound = longest * largest * self._architecture.hidden**0.5
            if not bound < _FLOAT32_LIMIT:
                raise ParityError(f"{name} may leave float32 ({bound:.3g}): its weights cannot be a trained guard's.")


def _quantized(rows: FloatArray, levels: int) -> tuple[FloatArray, FloatArray]:
    """[..., K] -> whole numbers in -levels..levels as float32, and their scale [..., 1]."""
    scale = np.abs(rows).max(axis=-1, keepdims=True) * np.float32(1 / levels)
    safe = np.where(scale > 0, scale, np.float32(1))
    return np.rint(rows / safe), scale


def _context_in_eight_bits(
    queries: FloatArray, keys: FloatArray, values: FloatArray, scale: np.float32, ahead: FloatArray
) -> FloatArray:
    """One head's attention [tokens, head_dim]: queries and blocks of shares in seven bits, keys and values in eight."""
    tokens = len(queries)
    (query, query_scale), (key, key_scale), (value, value_scale) = (
        _quantized(queries, 63),
        _quantized(keys, 127),
        _quantized(values, 127),
    )
    scores = query @ key.T * (scale * key_scale[:, 0]) * query_scale + ahead
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    total = shares.sum(axis=1, keepdims=True)
    padding = -tokens % _SHARE_BLOCK
    weighed = np.pad(shares * value_scale[:, 0], ((0, 0), (0, padding)))
    whole, share_scale = _quantized(weighed.reshape(tokens, -1, _SHARE_BLOCK), 127)
    blocks = np.pad(value, ((0, padding), (0, 0))).reshape(-1, _SHARE_BLOCK, value.shape[1])
    parts = (whole.transpose(1, 0, 2) @ blocks) * share_scale.transpose(1, 0, 2)
    context: FloatArray = parts.sum(axis=0) / total
    return context


def rotations(architecture: Architecture, positions: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines, float32 [positions, head_dim / 2], as in transformers' Qwen3RotaryEmbedding."""
    size = architecture.head_dim
    frequencies = 1 / np.float32(architecture.rope_theta) ** (
        np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    )
    angles = positions[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def _same(numbers: FloatArray) -> FloatArray:
    return numbers


def _lengths(rows: FloatArray) -> npt.NDArray[np.float64]:
    """The length of each vector [..., n], in float64, which has room for the squares of any float32."""
    lengths: npt.NDArray[np.float64] = np.sqrt(np.einsum("...n,...n->...", rows, rows, dtype=np.float64))
    return lengths
