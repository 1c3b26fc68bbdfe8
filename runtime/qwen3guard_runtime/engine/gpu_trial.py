"""Runs a tiny graph on the GPU, to say what is missing before a guard is loaded there."""

from __future__ import annotations

import numpy as np
import onnxruntime
from qwen3guard_contract.errors import DeviceError

from qwen3guard_runtime.engine import cuda
from qwen3guard_runtime.engine.cuda_session import cuda_session

LEAST_CAPABILITY = (8, 0)
"""Compute capability 8.0 is the least that has FlashAttention, which paged attention runs in, and bfloat16."""
_PRODUCT = (
    b'\x08\n:D\n\x11\n\x01a\n\x01a\x12\x01b"\x06MatMul\x12\x05trialZ\x13\n\x01a\x12\x0e\n\x0c\x08\n\x12\x08\n\x02\x08'
    b"\x02\n\x02\x08\x02b\x13\n\x01b\x12\x0e\n\x0c\x08\n\x12\x08\n\x02\x08\x02\n\x02\x08\x02B\x04\n\x00\x10\x11"
)
"""An ONNX model: b = MatMul(a, a), both float16 [2, 2]. The runtime has no package that writes one."""
_FACTOR, _EXPECTED = [[1, 2], [3, 4]], [[7, 10], [15, 22]]


def try_gpu() -> str:
    """A sentence about the GPU that ONNX Runtime's CUDA provider multiplied on. Raises DeviceError with what is
    missing."""
    device = cuda.Cuda(cuda.bindings())
    capability = device.capability()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = cuda_session(_PRODUCT, options, {})
    try:
        (product,) = session.run(None, {"a": np.array(_FACTOR, np.float16)})
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DeviceError(f"The GPU ({capability}) does not run a product: {reason}.") from error
    if product.tolist() != _EXPECTED:
        raise DeviceError(f"The GPU ({capability}) multiplies wrongly: {product.tolist()} instead of {_EXPECTED}.")
    if tuple(map(int, capability.split("."))) < LEAST_CAPABILITY:
        raise DeviceError(
            f"The GPU has compute capability {capability}: paged attention and bf16 need 8.0. Export the guard with"
            " --weights fp16 --attention portable, and set device to cuda."
        )
    return f"A GPU of compute capability {capability} multiplies in ONNX Runtime {onnxruntime.__version__}."
