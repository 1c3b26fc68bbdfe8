"""Changes a graph that ONNX Runtime's CPU provider has not all the operators for into one that it can run.

The provider has no products in bfloat16, and none of the operators in half a dozen types that a graph for CUDA uses. So
each operator is computed in float32 between casts, as the provider itself does for float16: inputs and results are
rounded to two bytes where the graph says so, and the sums inside an operator are not, as on a GPU. A paged attention is
replaced by what it computes (`paged_on_cpu`).
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from qwen3guard_export.graph.emitter import SUM_AND_NORM
from qwen3guard_export.graph.paged import PAGED_ATTENTION
from qwen3guard_export.proof.paged_on_cpu import Expansion

_MOVES = {"Cast", "Gather", "GatherND", "TensorScatter", "Split", "Reshape", "Transpose", "Concat", "Identity"}
"""Operators that compute nothing: they run in any type."""


def run_on_cpu(graph: onnx.GraphProto, half: int) -> None:
    """Changes `graph`, whose type of two bytes is `half` (of TensorProto), in place."""
    halves = {tensor.name for tensor in graph.initializer if tensor.data_type == half}
    halves |= {value.name for value in graph.input if value.type.tensor_type.elem_type == half}
    expansion = Expansion(graph, half)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == PAGED_ATTENTION:
            nodes.extend(expansion.of(node))
            halves.update(node.output)
        elif node.op_type in _MOVES:
            to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), half)
            if to == half and (node.op_type == "Cast" or not halves.isdisjoint(node.input)):
                halves.update(node.output)
            nodes.append(node)
        elif halves.isdisjoint(node.input) or node.op_type == "Shape":
            nodes.append(node)
        else:
            halves.update(filter(None, node.output))
            parts = _sum_and_norm(node) if node.op_type == SUM_AND_NORM else [node]
            nodes.extend(each for part in parts for each in _in_float32(part, halves, half))
    del graph.node[:]
    graph.node.extend(nodes)


def _sum_and_norm(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The sum and its norm as two nodes: the norm is that of the sum as it is rounded."""
    rows, update, scale = node.input
    normed, total = node.output[0], node.output[3]
    epsilon = next(attribute.f for attribute in node.attribute if attribute.name == "epsilon")
    return [
        helper.make_node("Add", [rows, update], [total], name=f"{node.name}_sum"),
        helper.make_node(
            "RMSNormalization", [total, scale], [normed], name=f"{node.name}_norm", axis=-1, epsilon=epsilon
        ),
    ]


def _in_float32(node: onnx.NodeProto, halves: set[str], half: int) -> list[onnx.NodeProto]:
    """The node between casts."""
    before, after = [], []
    for index, name in enumerate(node.input):
        if name in halves:
            node.input[index] = f"{node.name}_wide_{index}"
            before.append(helper.make_node("Cast", [name], [node.input[index]], to=TensorProto.FLOAT))
    for index, name in enumerate(node.output):
        if name:
            node.output[index] = f"{node.name}_narrow_{index}"
            after.append(helper.make_node("Cast", [node.output[index]], [name], to=half))
    return [*before, node, *after]
