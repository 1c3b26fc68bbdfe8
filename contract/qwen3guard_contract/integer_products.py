"""Checks that this machine's 8-bit products are exact, by running some in ONNX Runtime. It takes milliseconds.

On x86 CPUs with AVX2 or AVX-512 but without VNNI, ONNX Runtime multiplies u8 by s8 with vpmaddubsw, which adds two
products in a saturating int16 (mlas/lib/platform.cpp chooses the kernel). Large products are then wrong, without an
error. The name of the CPU is not enough to know, because a hypervisor may hide what the CPU has.

The session option REPAIR makes products with a constant s8 matrix exact: it turns the matrix into u8 while the graph is
loaded. It does nothing for a matrix that is computed (the keys and values of int8 attention). That product is exact
everywhere if no number on the u8 side is above COMPUTED_LIMIT, and the exported graphs ensure this.
"""

from __future__ import annotations

import base64
import importlib
from functools import cache
from typing import Any, Literal

import numpy as np

from qwen3guard_contract.errors import DeviceError

Products = Literal["exact", "repaired"]
REPAIR = ("session.x64quantprecision", "1")
"""This option is set only where it is needed: on a CPU with VNNI it only chooses a slower kernel, u8 x u8."""
COMPUTED_LIMIT = 127
"""2 * 127 * 127 fits in an int16."""

_ROWS = (1, 2, 4, 16)
"""Numbers of rows to try, because one row may use another kernel than several."""
_DEPTH, _WIDTH, _LARGEST = 64, 16, 127

# Two graphs of y = MatMulIntegerToFloat(a, b, 1, 1): in the first, `b` is an input; in the second, `b` is a constant
# s8 [64, 16] of 127. tests/unit/test_products.py writes both with onnx, which a server does not have.
_COMPUTED = base64.b64decode(
    "CAo6kQEKOAoBYQoBYgoDb25lCgNvbmUSAXkiFE1hdE11bEludGVnZXJUb0Zsb2F0Og1jb20ubWljcm9zb2Z0EgFnKg0QASIEAACA"
    "P0IDb25lWhUKAWESEAoOCAISCgoDEgFtCgMSAWtaFQoBYhIQCg4IAxIKCgMSAWsKAxIBbmIVCgF5EhAKDggBEgoKAxIBbQoDEgFu"
    "QgQKABAVQhEKDWNvbS5taWNyb3NvZnQQAQ=="
)
_CONSTANT = base64.b64decode(
    "CAo6wQEKNAoFc2hhcGUSAWIiD0NvbnN0YW50T2ZTaGFwZSoVCgV2YWx1ZSoJCAEQAyoBf0IAoAEEOgAKOAoBYQoBYgoDb25lCgNv"
    "bmUSAXkiFE1hdE11bEludGVnZXJUb0Zsb2F0Og1jb20ubWljcm9zb2Z0EgFnKg0QASIEAACAP0IDb25lKg8IAhAHOgJAEEIFc2hh"
    "cGVaFQoBYRIQCg4IAhIKCgMSAW0KAxIBa2IVCgF5EhAKDggBEgoKAxIBbQoDEgFuQgQKABAVQhEKDWNvbS5taWNyb3NvZnQQAQ=="
)


@cache
def products() -> Products:
    """Whether u8 x s8 products are exact here without help, or with REPAIR. Raises DeviceError if REPAIR does not help
    either.
    """
    ort = importlib.import_module("onnxruntime")
    if not _exact(ort, _COMPUTED, COMPUTED_LIMIT):
        raise DeviceError("This CPU multiplies even 7-bit numbers wrongly in ONNX Runtime: export in fp32.")
    if _exact(ort, _CONSTANT, 255):
        return "exact"
    if _exact(ort, _CONSTANT, 255, repair=True):
        return "repaired"
    raise DeviceError(
        f"This CPU's 8-bit products saturate, and ONNX Runtime {ort.__version__} does not repair them"
        f" ({REPAIR[0]}): export in fp32."
    )


def ensure_exact(options: Any) -> Products:
    """Adds REPAIR to the `onnxruntime.SessionOptions` if 8-bit products need it here. Returns what `products` does.

    Raises DeviceError if they cannot be exact.
    """
    state = products()
    if state == "repaired":
        options.add_session_config_entry(*REPAIR)
    return state


def _exact(ort: Any, model: bytes, largest: int, *, repair: bool = False) -> bool:
    """Whether the sum of 64 products of u8 `largest` and s8 127 is correct, for each number of _ROWS."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if repair:
        options.add_session_config_entry(*REPAIR)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {"b": np.full((_DEPTH, _WIDTH), _LARGEST, np.int8)} if len(session.get_inputs()) == 2 else {}
    expected = largest * _LARGEST * _DEPTH
    return all(
        bool((session.run(None, feeds | {"a": np.full((rows, _DEPTH), largest, np.uint8)})[0] == expected).all())
        for rows in _ROWS
    )
