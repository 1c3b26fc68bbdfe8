"""Weight formats: how a row of activations is multiplied by a weight matrix.

`fp32` is a plain MatMul. `fp16` and `bf16` multiply in that type, and everything between two products stays in float32,
because the residual stream of a Qwen3 may outgrow float16. `dq8r` quantizes each token's row with its own scale to u8
around 128, and each output channel of the weights to s8; it multiplies in integers and rescales. A row's scale depends
on that row alone, and integer sums are exact, so a token's result does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import TensorProto
from qwen3guard_contract.forms import WeightFormat

from qwen3guard_export.checkpoint.weight_files import Array, FloatArray
from qwen3guard_export.graph.emitter import CONTRIB, Emitter


@dataclass(frozen=True)
class Half:
    """A float of two bytes: its ONNX type, its numpy type, and its name as a cache's dtype."""

    onnx: int
    numpy: np.dtype[np.generic]
    name: str

    def array(self, values: FloatArray) -> Array:
        return values.astype(self.numpy)


HALVES = {
    "fp16": Half(TensorProto.FLOAT16, np.dtype(np.float16), "float16"),
    "bf16": Half(TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16), "bfloat16"),
}
"""The weight formats that multiply in floats of two bytes."""

_LEVELS = 127.0
_ZERO_POINT = 128


@dataclass(frozen=True)
class Activation:
    """Rows ready for `linear`. With a `row_scale` [..., 1], `rows` are u8 and stand for (rows - 128) * row_scale."""

    rows: str
    row_scale: str | None = None


@dataclass(frozen=True)
class Product:
    """What `linear` gives: the true values are `values * row_scale`, or `values` where there is no scale."""

    values: str
    row_scale: str | None = None

    def scaled(self, graph: Emitter) -> str:
        return self.values if self.row_scale is None else graph.op("Mul", [self.values, self.row_scale])


def activation(
    graph: Emitter,
    weights: WeightFormat,
    rows: str,
    depth: int,
    *,
    rows_key: str,
    pending: str | None = None,
    finite: bool = False,
) -> Activation:
    """Prepares `rows`, float32 [..., `depth`], once for all the matrices that read them.

    Tensors with the same `rows_key` have the same number of rows, whatever their depth, and share a tensor of zero
    points. `pending` is a row scale [..., 1] that `rows` still lack. It does not change how a row is quantized, so it
    is multiplied into the new scale and not into every element. With `finite`, a row with a NaN or an infinity becomes
    NaN as a whole; otherwise it could get lost, since a maximum may ignore a NaN, and integers have none.
    """
    if weights == "fp32":
        return Activation(rows)
    if half := HALVES.get(weights):
        return Activation(graph.op("Cast", [rows], to=half.onnx))
    scale = row_scale(graph, rows, _LEVELS)
    quantized = quantize_u8(graph, rows, scale, depth, zero_point=_ZERO_POINT, rows_key=rows_key)
    if finite:
        nan_or_zero = graph.op("Mul", [graph.op("ReduceSum", [rows, graph.ints(-1)]), graph.scalar(0.0, np.float32)])
        scale = graph.op("Add", [scale, nan_or_zero])
    return Activation(quantized, scale if pending is None else graph.op("Mul", [scale, pending]))


def row_scale(graph: Emitter, rows: str, levels: float, *, positive: bool = False) -> str:
    """float32 [..., K] -> [..., 1]: each row's largest absolute value / `levels`.

    A row of zeros has the scale 0. Its quotients are NaN and become arbitrary integers, which the scale turns into 0.
    """
    absolute = rows if positive else graph.op("Abs", [rows])
    largest = graph.op("ReduceMax", [absolute, graph.ints(-1)], keepdims=1)
    return graph.op("Mul", [largest, graph.scalar(1 / levels, np.float32)])


def quantize_u8(graph: Emitter, rows: str, scale: str, depth: int, *, zero_point: int, rows_key: str) -> str:
    """float32 [..., `depth`] / `scale` [..., 1] -> u8 around `zero_point`, for u8 x s8 products.

    `rows_key` is as in `activation`. A block is a whole row, which ONNX Runtime quantizes three times as fast as a
    division followed by a quantization.
    """
    zero_points = graph.once(
        (rows_key, zero_point),
        lambda: graph.op("Expand", [graph.scalar(zero_point, np.uint8), graph.op("Shape", [scale])]),
    )
    return graph.op("QuantizeLinear", [rows, scale, zero_points], axis=-1, block_size=depth)


def quantize_positive_u8(graph: Emitter, rows: str, scale: str, depth: int) -> str:
    """float32 [..., `depth`], none below 0, / `scale` [..., 1] -> u8."""
    return graph.op("QuantizeLinear", [rows, scale], axis=-1, block_size=depth)


def quantize_s8(graph: Emitter, rows: str, scale: str, depth: int) -> str:
    """float32 [..., `depth`] / `scale` [..., 1] -> s8."""
    return graph.op("QuantizeLinear", [rows, scale], axis=-1, block_size=depth, output_dtype=TensorProto.INT8)


def linear(
    graph: Emitter, weights: WeightFormat, inputs: Activation, name: str, matrix: Callable[[], FloatArray]
) -> Product:
    """rows [..., K] @ matrix.T, with matrix [N, K] as checkpoints store it. The matrix is read here and not kept."""
    if weights == "fp32":
        return Product(graph.op("MatMul", [inputs.rows, graph.weight(name, matrix().T)]))
    if half := HALVES.get(weights):
        product = graph.op("MatMul", [inputs.rows, graph.weight(name, half.array(matrix().T))])
        return Product(graph.op("Cast", [product], to=TensorProto.FLOAT))
    quantized, scale = quantize_rows(matrix())
    values = graph.op(
        "MatMulIntegerToFloat",
        [
            inputs.rows,
            graph.weight(f"{name}.s8", quantized.T),
            graph.scalar(1.0, np.float32),
            graph.weight(f"{name}.scale", scale),
            graph.scalar(_ZERO_POINT, np.uint8),
        ],
        domain=CONTRIB,
    )
    return Product(values, inputs.row_scale)


def quantize_rows(matrix: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """[N, K] -> s8 [N, K] in -127..127 and a float32 scale [N]: row n is about s8[n] * scale[n]."""
    largest = np.maximum(matrix.max(axis=1), -matrix.min(axis=1))
    scale = np.where(largest > 0, largest / np.float32(_LEVELS), np.float32(1)).astype(np.float32)
    quantized = np.empty(matrix.shape, np.int8)
    step = max(1, (1 << 22) // matrix.shape[1])
    for start in range(0, len(matrix), step):
        part = slice(start, start + step)
        quantized[part] = np.clip(np.rint(matrix[part] / scale[part, None]), -_LEVELS, _LEVELS)
    return quantized, scale
