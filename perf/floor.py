"""The best that this machine can do: bytes read and operations done in a second, by the kernels that serve.

    .venv/bin/python perf/floor.py [VERSION_FOLDER ...]

The floor of a work is the least time that it can take at these rates.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from qwen3guard_contract.integer_products import ensure_exact
from qwen3guard_contract.manifest import Manifest

THREADS = 2
READ_BYTES = 512 << 20
ROWS, INNER, COLUMNS = 330, 1024, 3072


def probe() -> dict[str, float]:
    """`read_gb_s`, from a vector times a matrix too large for any cache; `u8s8_gops` and `fp32_gflops`, from products
    of 330 rows and the FFN's matrix. Each is the best of several runs, since a disturbance can only slow a run down."""
    rows = READ_BYTES // 4 // INNER
    return {
        "read_gb_s": READ_BYTES / 1e9 / _best(_product("fp32", rows), np.ones((1, INNER), np.float32)),
        "fp32_gflops": _operations() / 1e9 / _best(_product("fp32", COLUMNS), np.ones((ROWS, INNER), np.float32)),
        "u8s8_gops": _operations() / 1e9 / _best(_product("u8s8", COLUMNS), np.ones((ROWS, INNER), np.uint8)),
    }


def step_seconds(manifest: Manifest, floor: dict[str, float], context: int) -> float:
    """The floor of one token of one stream: every weight of the layers and every cell of its slot is read once."""
    cells = sum(int(np.prod(cache.shape(context))) * np.dtype(cache.dtype).itemsize for cache in manifest.caches)
    return (layer_weights(manifest) + cells) / (1e9 * floor["read_gb_s"])


def classify_seconds(manifest: Manifest, floor: dict[str, float], *, begin: int, tokens: int, answer: int) -> float:
    """The floor of `tokens` new tokens after `begin` that are held.

    It counts the layers' products in u8 x s8, those of attention in fp32, and the lm_head for `answer` + 1 tokens.
    """
    products = 2 * tokens * layer_weights(manifest) + 2 * (answer + 1) * manifest.vocab_size * manifest.hidden_size
    seen = tokens * begin + tokens * (tokens + 1) // 2
    attention = 4 * seen * manifest.layers * _query_width(manifest)
    return products / (1e9 * floor["u8s8_gops"]) + attention / (1e9 * floor["fp32_gflops"])


def layer_weights(manifest: Manifest) -> int:
    """The weights of q, k, v, o, gate, up and down in all layers, one byte each; the FFN's width is that of 0.6B."""
    hidden, kv = manifest.hidden_size, manifest.kv_heads * manifest.head_dim
    query = _query_width(manifest)
    return manifest.layers * (2 * hidden * query + 2 * hidden * kv + 3 * hidden * 3 * hidden)


def _query_width(manifest: Manifest) -> int:
    return 2 * manifest.kv_heads * manifest.head_dim


def _operations() -> float:
    return 2.0 * ROWS * INNER * COLUMNS


def _product(kind: str, columns: int) -> onnxruntime.InferenceSession:
    if kind == "fp32":
        matrix = np.ones((INNER, columns), np.float32)
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        weights, elements = [numpy_helper.from_array(matrix, "w")], TensorProto.FLOAT
    else:
        node = helper.make_node(
            "MatMulIntegerToFloat", ["x", "w", "one", "scale", "zero"], ["y"], domain="com.microsoft"
        )
        weights = [
            numpy_helper.from_array(np.full((INNER, columns), 127, np.int8), "w"),
            numpy_helper.from_array(np.float32(1), "one"),
            numpy_helper.from_array(np.ones(columns, np.float32), "scale"),
            numpy_helper.from_array(np.uint8(128), "zero"),
        ]
        elements = TensorProto.UINT8
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", elements, ["rows", INNER])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", columns])],
        weights,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    ensure_exact(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _best(session: onnxruntime.InferenceSession, rows: np.ndarray, times: int = 20) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        session.run(None, {"x": rows})
        taken.append(time.perf_counter() - began)
    return min(taken)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="of exported guards, whose steps are estimated")
    folders = parser.parse_args().folders
    rates = probe()
    print(json.dumps({name: round(value, 1) for name, value in rates.items()}))
    for folder in folders:
        milliseconds = 1e3 * step_seconds(Manifest.read(folder), rates, 512)
        print(f"{folder}: a step at 512 tokens {milliseconds:.1f} ms")
