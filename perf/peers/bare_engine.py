"""The product's own engine without a server: ONNX Runtime over KV slots in this process.

    python bare_engine.py STREAM_VERSION_FOLDER

Reads one request from each line and answers {"ms": ...} on a line. `step` adds tokens to a slot of `context` tokens.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from qwen3guard_contract.manifest import Manifest
from qwen3guard_runtime.engine.kv_cache import KVCache, Slot
from qwen3guard_runtime.engine.onnx_runner import OnnxRunner
from qwen3guard_runtime.engine.runner import Row


def main() -> None:
    folder = Path(sys.argv[1])
    manifest = Manifest.read(folder)
    runner = OnnxRunner(folder, manifest)
    cache = KVCache(manifest, slots=8)
    slots: dict[int, Slot] = {}
    for line in sys.stdin:
        request = json.loads(line)
        context, tokens = request["context"], request["tokens"]
        ids = np.arange(1000, 1000 + context + tokens)
        if context not in slots:
            slots[context] = cache.acquire(context + 16)
            runner.forward([Row(slots[context], ids[:context], [])])
        slot = slots[context]
        began = time.perf_counter()
        runner.forward([Row(slot, ids[context:], range(tokens))])
        took = time.perf_counter() - began
        slot.length = context
        print(json.dumps({"ms": 1e3 * took}), flush=True)


if __name__ == "__main__":
    main()
