"""Runs passes of one exported guard on the GPU that is not there, in a process of its own.

Reads one JSON object, a `Work`, from standard input, and writes one to standard output: what the session is, and for
each part of the work the shapes of its outputs, or its error. The journal has the rest.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.parameters import DEVICE_PARAMETERS
from qwen3guard_runtime.engine import cuda
from qwen3guard_runtime.engine.cuda_session import load_libraries
from qwen3guard_runtime.engine.devices import open_guard
from qwen3guard_runtime.engine.kv_cache import KVCache
from qwen3guard_runtime.engine.runner import Row
from qwen3guard_runtime.parameters import Parameters

from support.fake_cuda.bindings import Bindings
from support.fake_cuda.journal import MARK

SESSIONS: list[Any] = []


def watch_sessions() -> None:
    """Keeps the sessions, and lets them record where they place their nodes."""
    session = onnxruntime.InferenceSession

    def recorded(path: Path, options: Any, providers: list[Any]) -> Any:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        SESSIONS.append(session(path, options, providers=providers))
        return SESSIONS[-1]

    onnxruntime.InferenceSession = recorded


def on_the_cpu() -> list[str]:
    """The operators that the sessions run on the CPU."""
    return [
        node.op_type
        for session in SESSIONS
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    ]


def main() -> None:
    work = json.load(sys.stdin)
    load_libraries()
    library = ctypes.CDLL("libcudart.so.13")
    cuda.bindings = lambda: Bindings(library)
    watch_sessions()

    def begin(part: str) -> None:
        library.fake_cuda_note(MARK.encode(), part.encode())

    folder = Path(work["folder"])
    manifest = Manifest.read(folder)
    begin("load")
    opened = open_guard(folder, manifest, Parameters(DEVICE_PARAMETERS | work["parameters"]))
    begin("slots")
    cache = KVCache(opened.manifest, slots=work["slots"], memory=opened.memory)
    slots = [cache.acquire(1) for _ in range(work["slots"])]
    shapes, errors = {}, {}
    for part, rows in work["parts"].items():
        if part == "broken":
            library.fake_cuda_break(700)
        ids = [np.arange(tokens, dtype=np.int64) % manifest.vocab_size for _, tokens, _ in rows]
        asked = [range(tokens - logits, tokens) for _, tokens, logits in rows]
        begin(part)
        try:
            every = zip(rows, ids, asked, strict=True)
            logits = opened.runner.forward([Row(slots[slot], each, wanted) for (slot, _, _), each, wanted in every])
            shapes[part] = [[output.shape for output in row] for row in logits]
        except Exception as error:
            errors[part] = f"{type(error).__name__}: {error}"
    begin("end")
    print(
        json.dumps(
            {
                "providers": SESSIONS[0].get_providers(),
                "on_the_cpu": on_the_cpu(),
                "shapes": shapes,
                "errors": errors,
                "context": opened.manifest.context,
                "lengths": [slot.length for slot in slots],
            }
        )
    )


if __name__ == "__main__":
    main()
