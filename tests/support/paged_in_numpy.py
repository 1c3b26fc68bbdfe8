"""Runs a paged graph in numpy, node by node, as the kernels of ONNX Runtime's CUDA provider round.

Every result is rounded to the type of its tensor. Sums and norms are in float32. In attention, the exponentials are
rounded before they weigh the values, as FlashAttention does, and their sum is not. The rest of the project knows
nothing of this module, nor this module of it: it reads the operators' definitions alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

PAGE = 256
FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype(np.float32), 10: np.dtype(np.float16), 16: np.dtype(ml_dtypes.bfloat16)}
Arrays = dict[str, np.ndarray]


class PagedGraph:
    """A graph and its weights. `run` returns its outputs, among them the caches as they are written."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        self._nodes = model.graph.node
        self._weights = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
        self._outputs = [each.name for each in model.graph.output]

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        values: dict[str, Any] = {"": None} | self._weights | dict(inputs)
        for node in self._nodes:
            attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            found = getattr(self, f"_{node.op_type}")(*(values[name] for name in node.input), **attributes)
            results = found if isinstance(found, tuple) else (found,)
            values |= zip(node.output, results, strict=True)
        return {name: values[name] for name in self._outputs}

    @staticmethod
    def _Gather(table: np.ndarray, indices: np.ndarray, axis: int = 0) -> np.ndarray:  # noqa: N802
        return np.take(table, indices, axis=axis)

    @staticmethod
    def _Cast(rows: np.ndarray, to: int) -> np.ndarray:  # noqa: N802
        return rows.astype(FLOATS[to])

    @staticmethod
    def _Add(one: np.ndarray, other: np.ndarray) -> np.ndarray:  # noqa: N802
        return one + other

    @staticmethod
    def _Concat(*parts: np.ndarray, axis: int) -> np.ndarray:  # noqa: N802
        return np.concatenate(parts, axis=axis)

    @staticmethod
    def _ReduceSum(rows: np.ndarray, axes: np.ndarray, keepdims: int) -> np.ndarray:  # noqa: N802
        return rows.sum(axis=int(axes[0]), keepdims=bool(keepdims))

    @staticmethod
    def _GatherElements(values: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:  # noqa: N802
        return np.take_along_axis(values, indices.astype(np.int64), axis)

    @staticmethod
    def _LogSoftmax(rows: np.ndarray, axis: int) -> np.ndarray:  # noqa: N802
        shifted = rows - rows.max(axis=axis, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))

    @staticmethod
    def _TopK(rows: np.ndarray, count: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: N802
        assert count.tolist() == [1]
        return rows.max(axis=axis, keepdims=True), rows.argmax(axis=axis, keepdims=True)

    @staticmethod
    def _Identity(rows: np.ndarray) -> np.ndarray:  # noqa: N802
        return rows

    @staticmethod
    def _Mul(one: np.ndarray, other: np.ndarray) -> np.ndarray:  # noqa: N802
        return (wide(one) * wide(other)).astype(one.dtype)

    @staticmethod
    def _QuickGelu(rows: np.ndarray, alpha: float) -> np.ndarray:  # noqa: N802
        numbers = wide(rows)
        return (numbers / (1 + np.exp(-alpha * numbers))).astype(rows.dtype)

    @staticmethod
    def _MatMul(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:  # noqa: N802
        return (wide(rows) @ wide(matrix)).astype(rows.dtype)

    @staticmethod
    def _Gemm(rows: np.ndarray, matrix: np.ndarray, transB: int) -> np.ndarray:  # noqa: N802, N803
        assert transB == 1
        return (wide(rows) @ wide(matrix).T).astype(rows.dtype)

    @staticmethod
    def _RMSNormalization(rows: np.ndarray, scale: np.ndarray, axis: int, epsilon: float) -> np.ndarray:  # noqa: N802
        assert axis == -1
        return normed(rows, scale, epsilon)

    @staticmethod
    def _SkipSimplifiedLayerNormalization(  # noqa: N802
        rows: np.ndarray, update: np.ndarray, scale: np.ndarray, epsilon: float
    ) -> tuple[np.ndarray | None, ...]:
        assert rows.dtype == update.dtype == scale.dtype
        total = (wide(rows) + wide(update)).astype(rows.dtype)
        return normed(total, scale, epsilon), None, None, total

    @staticmethod
    def _PagedAttention(  # noqa: N802
        *inputs: Any, num_heads: int, kv_num_heads: int, scale: float, do_rotary: int, qk_norm_epsilon: float
    ) -> tuple[np.ndarray, ...]:
        """The inputs that stand for nothing here are separate keys and values, a mapping to cells, a sink, and scales
        of a cache of eight bits."""
        packed, key_cache, value_cache, starts, past, pages, cos, sin, q_norm, k_norm, bounds = (
            inputs[number] for number in (0, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16)
        )
        assert all(inputs[number] is None for number in (1, 2, 10, 11, 14, 15))
        assert do_rotary == 1
        assert packed.dtype == key_cache.dtype == cos.dtype == q_norm.dtype
        assert bounds[0] >= np.diff(starts).max()
        assert bounds[1] >= (past + np.diff(starts)).max()
        keys, values = key_cache.copy(), value_cache.copy()
        size = len(q_norm)
        heads = packed.reshape(len(packed), -1, size)
        output = np.empty((len(packed), num_heads, size), packed.dtype)
        for row, (begin, end) in enumerate(pairwise(starts)):
            for token in range(begin, end):
                position = past[row] + token - begin
                page, cell = pages[row, position // PAGE], position % PAGE
                own = heads[token, num_heads : num_heads + kv_num_heads]
                keys[page, cell] = turned(normed(own, k_norm, qk_norm_epsilon), cos[position], sin[position])
                values[page, cell] = heads[token, num_heads + kv_num_heads :]
            for token in range(begin, end):
                position = past[row] + token - begin
                asking = turned(normed(heads[token, :num_heads], q_norm, qk_norm_epsilon), cos[position], sin[position])
                seen = [(pages[row, cell // PAGE], cell % PAGE) for cell in range(position + 1)]
                held = [np.stack([wide(cache[place]) for place in seen], 1) for cache in (keys, values)]
                group = num_heads // kv_num_heads
                for head in range(num_heads):
                    scores = held[0][head // group] @ wide(asking[head]) * np.float32(scale)
                    shares = np.exp(scores - scores.max())
                    weighed = wide(shares.astype(packed.dtype)) @ held[1][head // group]
                    output[token, head] = (weighed / shares.sum()).astype(packed.dtype)
        return output.reshape(len(packed), -1), keys, values


def wide(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.float32)


def normed(rows: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    numbers = wide(rows)
    root = np.sqrt(np.mean(numbers * numbers, axis=-1, keepdims=True) + np.float32(epsilon))
    return (numbers / root * wide(scale)).astype(rows.dtype)


def turned(heads: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Heads [heads, size] of one token, rotated in their own type: each product is rounded, and each sum."""
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
