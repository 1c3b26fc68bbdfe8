"""A paged attention in standard operators, for ONNX Runtime's CPU provider, with the roundings of its CUDA kernels.

Queries and keys are normed in float32 and rounded; each product of a rotation is rounded, and so is its sum. Keys and
values are written to their cells, and each token attends to the cells of its row up to its own. The attention itself is
in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from qwen3guard_contract.manifest import GRAPH_INPUT_IDS, GRAPH_PAGES, GRAPH_POSITIONS, GRAPH_ROW_STARTS
from qwen3guard_contract.slots import PAGE_CELLS

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
_END = np.iinfo(np.int64).max


class Expansion:
    """Replaces the paged attentions of one graph, whose type of two bytes is `half`."""

    def __init__(self, graph: onnx.GraphProto, half: int) -> None:
        self._graph = graph
        self._half = half
        self._nodes: list[onnx.NodeProto] = []
        self._count = 0
        self._is_placed = False

    def of(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Yields nodes that compute what `node` does, from its inputs to its outputs."""
        if not self._is_placed:
            self._place_tokens()
            self._is_placed = True
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        heads, kv_heads = attributes["num_heads"], attributes["kv_num_heads"]
        packed, past_keys, past_values = node.input[0], node.input[3], node.input[4]
        cos, sin, q_norm, k_norm = (self._wide(node.input[index]) for index in (8, 9, 12, 13))
        size = self._op("Shape", [q_norm])
        lengths = self._op("Mul", [self._ints(heads, kv_heads, kv_heads), size])
        queries, keys, values = self._split(self._wide(packed), lengths, axis=1)
        queries, keys = (
            self._turned(self._heads(rows, count, size), scale, cos, sin, attributes["qk_norm_epsilon"])
            for rows, count, scale in ((queries, heads, q_norm), (keys, kv_heads, k_norm))
        )
        self._op("ScatterND", [past_keys, self._cell, self._narrow(keys)], name=node.output[1])
        new_values = self._narrow(self._heads(values, kv_heads, size))
        self._op("ScatterND", [past_values, self._cell, new_values], name=node.output[2])
        shape = self._op("Concat", [self._grid_shape, self._ints(heads), size], axis=0)
        grid = self._op("ScatterND", [self._op("ConstantOfShape", [shape]), self._token, queries])
        attended = self._op(
            "Attention",
            [
                self._op("Transpose", [grid], perm=[0, 2, 1, 3]),
                *(self._cells(node.output[index], kv_heads, size) for index in (1, 2)),
                self._mask,
            ],
            scale=attributes["scale"],
        )
        rows = self._op("GatherND", [self._op("Transpose", [attended], perm=[0, 2, 1, 3]), self._token])
        joined = self._op("Reshape", [rows, self._ints(0, -1)])
        self._op("Cast", [joined], name=node.output[0], to=self._half)
        yield from self._nodes
        self._nodes.clear()

    def _place_tokens(self) -> None:
        """Where each token stands: its row and its index in the row, its cell, and what it sees."""
        first, one = self._ints(0), self._ints(1)
        count = self._op("Squeeze", [self._op("Shape", [GRAPH_INPUT_IDS])])
        token = self._op("Range", [self._scalar(0), count, self._scalar(1)])
        starts = self._op("Cast", [GRAPH_ROW_STARTS], to=INT64)
        begins = self._op("Slice", [starts, first, self._ints(-1)])
        ends = self._op("Slice", [starts, one, self._ints(_END)])
        is_past = self._op("GreaterOrEqual", [self._column(token), ends])
        row = self._op("ReduceSum", [self._op("Cast", [is_past], to=INT64), one], keepdims=0)
        index = self._op("Sub", [token, self._op("Gather", [starts, row])])
        positions = self._op("Cast", [GRAPH_POSITIONS], to=INT64)
        self._position = self._op("Add", [self._op("Gather", [positions, row]), index])
        page_cells = self._scalar(PAGE_CELLS)
        page_place = self._pair(row, self._op("Div", [self._position, page_cells]))
        page = self._op("GatherND", [self._op("Cast", [GRAPH_PAGES], to=INT64), page_place])
        self._cell = self._pair(page, self._op("Mod", [self._position, page_cells]))
        self._token = self._pair(row, index)
        longest = self._op("ReduceMax", [self._op("Sub", [ends, begins])], keepdims=1)
        self._grid_shape = self._op("Concat", [self._op("Shape", [GRAPH_POSITIONS]), longest], axis=0)
        zeros = self._op("Expand", [first, self._grid_shape])
        seen_to = self._op("ScatterND", [zeros, self._token, self._position])
        pages = self._op("Squeeze", [self._op("Shape", [GRAPH_PAGES], start=1)])
        cells = self._op("Range", [self._scalar(0), self._op("Mul", [pages, page_cells]), self._scalar(1)])
        self._mask = self._op("LessOrEqual", [cells, self._op("Unsqueeze", [seen_to, self._ints(1, 3)])])

    def _turned(self, heads: str, scale: str, cos: str, sin: str, epsilon: float) -> str:
        """Heads [tokens, heads, size], normed and rotated, in float32 with numbers of two bytes."""
        normed = self._rounded(self._op("RMSNormalization", [heads, scale], axis=-1, epsilon=epsilon))
        first, second = self._split(normed, None, axis=2)
        cos, sin = (
            self._op("Unsqueeze", [self._op("Gather", [table, self._position]), self._ints(1)]) for table in (cos, sin)
        )

        def product(part: str, table: str) -> str:
            return self._rounded(self._op("Mul", [part, table]))

        turned = [
            self._op("Sub", [product(first, cos), product(second, sin)]),
            self._op("Add", [product(second, cos), product(first, sin)]),
        ]
        return self._rounded(self._op("Concat", turned, axis=2))

    def _cells(self, cache: str, kv_heads: int, size: str) -> str:
        """The cells of all rows' slots, float32 [rows, kv_heads, cells, size]."""
        cells = self._wide(self._op("Gather", [cache, GRAPH_PAGES]))
        shape = self._op("Concat", [self._ints(0, -1, kv_heads), size], axis=0)
        return self._op("Transpose", [self._op("Reshape", [cells, shape])], perm=[0, 2, 1, 3])

    def _heads(self, rows: str, count: int, size: str) -> str:
        return self._op("Reshape", [rows, self._op("Concat", [self._ints(-1, count), size], axis=0)])

    def _wide(self, name: str) -> str:
        return self._op("Cast", [name], to=FLOAT)

    def _narrow(self, name: str) -> str:
        return self._op("Cast", [name], to=self._half)

    def _rounded(self, name: str) -> str:
        return self._wide(self._narrow(name))

    def _column(self, name: str) -> str:
        return self._op("Unsqueeze", [name, self._ints(1)])

    def _pair(self, one: str, other: str) -> str:
        """int64 [tokens, 2] of two tensors [tokens]."""
        return self._op("Concat", [self._column(one), self._column(other)], axis=1)

    def _op(self, kind: str, inputs: Sequence[str], *, name: str = "", **attributes: Any) -> str:
        output = name or self._new()
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=f"{output}_on_cpu", **attributes))
        return output

    def _split(self, name: str, lengths: str | None, *, axis: int) -> list[str]:
        parts = [self._new() for _ in range(2 if lengths is None else 3)]
        if lengths is None:
            node = helper.make_node("Split", [name], parts, name=parts[0], axis=axis, num_outputs=2)
        else:
            node = helper.make_node("Split", [name, lengths], parts, name=parts[0], axis=axis)
        self._nodes.append(node)
        return parts

    def _new(self) -> str:
        self._count += 1
        return f"paged_on_cpu_{self._count}"

    def _ints(self, *values: int) -> str:
        return self._constant(np.asarray(values, np.int64))

    def _scalar(self, value: int) -> str:
        return self._constant(np.asarray(value, np.int64))

    def _constant(self, array: np.ndarray[Any, np.dtype[np.int64]]) -> str:
        name = self._new()
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name
