"""Opens a guard on the card as the server does, or without one: on a double that computes on the CPU, or in ONNX
Runtime's real CUDA provider over a CUDA runtime that is not there."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import figures  # noqa: F401  it finds the project
import onnxruntime
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.parameters import DEVICE_PARAMETERS
from qwen3guard_runtime.engine import cuda
from qwen3guard_runtime.engine.cuda_session import CUDA, load_libraries
from qwen3guard_runtime.engine.devices import OpenedGuard, open_guard
from qwen3guard_runtime.parameters import Parameters

JOURNAL = "FAKE_CUDA_JOURNAL"
"""The environment variable by which a process knows that its CUDA runtime is not there."""


def opened(folder: Path, *, slot_tokens: int, candidates: Sequence[int] = (0,)) -> OpenedGuard:
    """The guard in `folder` on the device `cuda`, with slots of `slot_tokens`, rounded up to whole pages. Raises what
    `open_guard` raises."""
    values = DEVICE_PARAMETERS | {"device": "cuda", "slot_tokens": str(slot_tokens)}
    return open_guard(folder, Manifest.read(folder), Parameters(values), candidates)


def on_a_double() -> None:
    """From now on, this process has a double of a GPU: its values are right, and its times are the CPU's."""
    from support.gpu_double import PagedSession, Runtime

    runtime, session = Runtime(limit=1 << 34), onnxruntime.InferenceSession

    def on_the_cpu(path: Path, options: Any = None, *, providers: list[Any]) -> Any:
        if providers == ["CPUExecutionProvider"]:
            return session(path, options, providers=providers)
        return PagedSession(runtime, path, options, providers)

    onnxruntime.get_available_providers = lambda: [CUDA]
    onnxruntime.InferenceSession = on_the_cpu
    cuda.bindings = lambda: runtime


def over_fake_cuda() -> None:
    """Goes on in a process with ONNX Runtime's CUDA provider and a CUDA runtime that is not there, in which no kernel
    runs. This process ends with that one's status; the new one returns. It needs gcc and `make .venv/gpu.done`."""
    from support.fake_cuda.bindings import Bindings
    from support.fake_cuda.run import FakeGpu

    if JOURNAL in os.environ:
        load_libraries()
        library = ctypes.CDLL("libcudart.so.13")
        cuda.bindings = lambda: Bindings(library)
        return
    with tempfile.TemporaryDirectory() as folder:
        done = FakeGpu(Path(folder)).python(*sys.argv, **{JOURNAL: str(Path(folder) / "journal")})
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    sys.exit(done.returncode)
