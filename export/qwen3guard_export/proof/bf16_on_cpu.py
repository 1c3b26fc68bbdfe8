"""Changes a bf16 graph so that ONNX Runtime's CPU provider, which has no products in bfloat16, can run it.

Each product is computed in float32 between casts, as the provider itself does for float16. So inputs and results are
rounded to bfloat16 where the graph says so, and the sums inside a product are not, as on a GPU.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

_FLOATS = {"MatMul": (2, 1), "Gemm": (2, 1), "Attention": (3, 1), "GroupQueryAttention": (5, 3)}
"""For each operator, how many of its first inputs and of its first outputs have the type that it computes in."""


def compute_in_float32(graph: onnx.GraphProto) -> None:
    """Puts casts around every product of bfloat16 in `graph`, in place."""
    wide = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    nodes = []
    for node in graph.node:
        inputs, outputs = _FLOATS.get(node.op_type, (0, 0))
        if not inputs or (node.op_type in ("MatMul", "Gemm") and node.input[1] in wide):
            nodes.append(node)
            continue
        for index in range(inputs):
            name = f"{node.name}_wide_{index}"
            nodes.append(helper.make_node("Cast", [node.input[index]], [name], to=TensorProto.FLOAT))
            node.input[index] = name
        nodes.append(node)
        for index in range(outputs):
            name = f"{node.name}_narrow_{index}"
            nodes.append(helper.make_node("Cast", [name], [node.output[index]], to=TensorProto.BFLOAT16))
            node.output[index] = name
    del graph.node[:]
    graph.node.extend(nodes)
