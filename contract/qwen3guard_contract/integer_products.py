"""Are this machine's 8-bit products exact? Asked of ONNX Runtime itself, in some milliseconds, before it serves.

On x86 CPUs with AVX2 or AVX-512 but without VNNI, ONNX Runtime multiplies u8 by s8 with vpmaddubsw, which adds two
products in a saturating int16 (mlas/lib/platform.cpp chooses the kernel): large products come out wrong, without an
error. The names of CPUs do not tell, since a hypervisor may hide what a CPU has; so the products are tried.

A constant s8 matrix is repaired by the session option REPAIR, which turns it into u8 while the graph is loaded. One
that is computed (the keys and values of int8 attention) is not; its product is exact everywhere as long as the u8 side
is at most COMPUTED_LIMIT, and the graphs keep to that.
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
"""Only where it is needed: on a CPU with VNNI it would take the slower u8 x u8 kernel and gain nothing."""
COMPUTED_LIMIT = 127
"""2 * 127 * 127 fits an int16."""

_ROWS = (1, 2, 4, 16)
"""One row may take another kernel than several."""
_DEPTH, _WIDTH, _LARGEST = 64, 16, 127

# y = MatMulIntegerToFloat(a, b, 1, 1), with `b` an input, and with `b` s8 [64, 16] of 127 (tests/unit/test_products.py
# writes both with onnx, which a server does not have).
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
    """How u8 x s8 products come out right here: by themselves, or with REPAIR.

    Raises DeviceError where neither does it.
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
    """Sets the `onnxruntime.SessionOptions` so that 8-bit products are exact, and says whether that took anything.

    Raises DeviceError where they cannot be.
    """
    found = products()
    if found == "repaired":
        options.add_session_config_entry(*REPAIR)
    return found


def _exact(ort: Any, model: bytes, largest: int, *, repair: bool = False) -> bool:
    """Whether u8 `largest` times s8 127, summed over 64 of them, is that."""
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
