"""A Qwen3Guard checkpoint becomes an ONNX graph that proves itself. Needs onnx and onnxruntime, no torch."""

from qwen3guard_export.export import export

__all__ = ["export"]
