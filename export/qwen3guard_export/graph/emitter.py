"""Writes an ONNX graph node by node, and its weights at once to an external data file.

This module knows ONNX and nothing of Qwen3. It never holds more than one large weight in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

from qwen3guard_export.checkpoint.weight_files import Array

OPSET = 24
IR_VERSION = 12
"""The lowest version that opset 24 allows. By default onnx writes a newer one, which many runtimes cannot read."""
CONTRIB = "com.microsoft"
SUM_AND_NORM = "SkipSimplifiedLayerNormalization"

_ALIGNMENT = 4096  # bytes of a page, so that each tensor can be mapped by itself
_INLINE_BYTES = 1024


class Emitter:
    """Collects nodes, and writes `folder/graph_name` and `folder/graph_name.data`. A context manager."""

    def __init__(self, folder: Path, graph_name: str) -> None:
        self._path = folder / graph_name
        self._data_path = folder / f"{graph_name}.data"
        self._data: BinaryIO | None = None
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._contrib = False
        self._shared: dict[tuple[object, ...], str] = {}

    def __enter__(self) -> Emitter:
        self._data = self._data_path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._data is not None:
            self._data.close()

    def input(self, name: str, elem_type: int, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, elem_type, shape))
        return name

    def output(self, name: str, elem_type: int, shape: Sequence[int | str]) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, elem_type, shape))
        return name

    def op(self, kind: str, inputs: Sequence[str], *, name: str = "", domain: str = "", **attributes: Any) -> str:
        """Adds a node with one output, and returns that output's name, which is `name` if one is given."""
        output = name or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes))
        self._contrib = self._contrib or domain == CONTRIB
        return output

    def split(self, whole: str, lengths: Sequence[int], *, axis: int) -> list[str]:
        """Adds a Split and returns the names of its parts."""
        parts = [f"Split_{len(self._nodes)}_{number}" for number in range(len(lengths))]
        self._nodes.append(helper.make_node("Split", [whole, self.ints(*lengths)], parts, name=parts[0], axis=axis))
        return parts

    def largest(self, rows: str) -> tuple[str, str]:
        """Adds a TopK of one: the largest number of each row [..., n], and its index, both [..., 1]."""
        parts = [f"TopK_{len(self._nodes)}_{part}" for part in ("values", "indices")]
        self._nodes.append(helper.make_node("TopK", [rows, self.ints(1)], parts, name=parts[0], axis=-1))
        return parts[0], parts[1]

    def add_and_norm(self, rows: str, update: str, scale: str, *, total: str, epsilon: float) -> str:
        """Adds ONNX Runtime's fused node for a sum and its RMS norm, and returns the norm's name.

        The sum of `rows` and `update` gets the name `total`.
        """
        node = f"SkipNorm_{len(self._nodes)}"
        normed = f"{node}_normed"
        self._nodes.append(
            helper.make_node(
                SUM_AND_NORM,
                [rows, update, scale],
                [normed, "", "", total],
                name=node,
                domain=CONTRIB,
                epsilon=epsilon,
            )
        )
        self._contrib = True
        return normed

    def in_place(self, kind: str, inputs: Sequence[str], *, presents: Sequence[str], **attributes: Any) -> str:
        """Adds an operator of ONNX Runtime that also writes `presents`, and returns its first output's name."""
        output = f"{kind}_{len(self._nodes)}"
        self._nodes.append(
            helper.make_node(kind, list(inputs), [output, *presents], name=output, domain=CONTRIB, **attributes)
        )
        self._contrib = True
        return output

    def weight(self, name: str, array: Array) -> str:
        """Adds the initializer `name`, unless it is there, and returns `name`. A large one is written to the data
        file."""
        if name in self._initializers:
            return name
        array = np.asarray(array, order="C")
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        if array.nbytes <= _INLINE_BYTES:
            tensor.raw_data = array.tobytes()
        else:
            self._write(tensor, array)
        self._initializers[name] = tensor
        return name

    def once(self, key: tuple[object, ...], add: Callable[[], str]) -> str:
        """Calls `add` the first time that `key` is asked for; returns the name that it gave, then and later."""
        if key not in self._shared:
            self._shared[key] = add()
        return self._shared[key]

    def ints(self, *values: int) -> str:
        return self.weight(f"ints_{'_'.join(map(str, values))}", np.asarray(values, np.int64))

    def scalar(self, value: float | int, dtype: type[np.generic]) -> str:
        return self.weight(f"{np.dtype(dtype).name}_{value!r}", np.asarray(value, dtype))

    def finish(self, graph_name: str, metadata: Mapping[str, str]) -> None:
        """Writes the graph with its `metadata`. Deterministic: the same calls give the same bytes."""
        graph = helper.make_graph(
            self._nodes, graph_name, self._inputs, self._outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if self._contrib:
            opsets.append(helper.make_opsetid(CONTRIB, 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="qwen3guard-export")
        helper.set_model_props(model, dict(metadata))
        self._path.write_bytes(model.SerializeToString(deterministic=True))

    def _write(self, tensor: onnx.TensorProto, array: Array) -> None:
        if self._data is None:
            raise RuntimeError("the emitter is not open")
        self._data.write(b"\0" * (-self._data.tell() % _ALIGNMENT))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", self._data_path.name),
            ("offset", self._data.tell()),
            ("length", array.nbytes),
        ):
            tensor.external_data.add(key=key, value=str(value))
        self._data.write(array.reshape(-1).view(np.uint8).data)
