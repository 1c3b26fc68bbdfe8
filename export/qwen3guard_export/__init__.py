"""Exports a Qwen3Guard checkpoint to an ONNX graph, and proves the graph. Needs onnx and onnxruntime, and no torch.

`export.py` is the order of the work: read a `checkpoint`, `balance` its channels for eight bits, write its `graph`,
make the `proof`, build a `tensorrt` engine, and place the files. `repository.py` adds what Triton needs around them.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on, ONNX Runtime sends events to Microsoft by default

from qwen3guard_export.export import export

__all__ = ["export"]
