"""Loads a graph into ONNX Runtime's CUDA provider, or says why it cannot be loaded there."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import io
import os
from collections.abc import Mapping
from pathlib import Path

import onnxruntime
from qwen3guard_contract.errors import CorruptFile, DeviceError
from qwen3guard_contract.extras import how_to_install

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FLASH_ATTENTION = "1"
DEFAULTS = {"arena_extend_strategy": "kSameAsRequested", "sdpa_kernel": FLASH_ATTENTION}
"""The provider's options where the operator states no other. By its own default the provider asks for memory in powers
of two, and chooses cuDNN's attention, which cannot be recorded, where cuDNN is installed."""


def cuda_session(
    graph: Path | bytes, options: onnxruntime.SessionOptions, provider: Mapping[str, str], *, helped: bool = True
) -> onnxruntime.InferenceSession:
    """A session whose first provider is CUDA's. Unless it is `helped`, no node may run on the CPU: such a node copies
    to the host and back in every pass, and cannot be recorded.

    Raises DeviceError where the provider does not load, and CorruptFile for a graph that cannot be loaded.
    """
    load_libraries()
    chosen: list[object] = [(CUDA, DEFAULTS | dict(provider))]
    if helped:
        chosen.append(CPU)
    else:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=chosen)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        if (missing := missing_library()) or "CUDA" in reason or "CUBLAS" in reason:
            raise DeviceError(f"ONNX Runtime cannot use the GPU: {missing or reason}.") from error
        name = graph if isinstance(graph, Path) else "The graph"
        raise CorruptFile(f"{name} cannot be loaded: {reason}.") from error
    if session.get_providers()[:1] != [CUDA]:
        reason = missing_library() or "its CUDA provider does not load; its log says why"
        raise DeviceError(f"ONNX Runtime cannot use the GPU: {reason}.")
    return session


def load_libraries() -> None:
    """Loads NVIDIA's libraries from the packages that pip installed, where the linker would not look for them.

    What is missing is found by `missing_library`, so what ONNX Runtime prints about it is dropped.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def missing_library() -> str | None:
    """Why the library of the CUDA provider cannot be loaded, in one clause, or None if it can."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    provider = folder / "libonnxruntime_providers_cuda.so"
    if not provider.is_file():
        command = how_to_install("gpu")
        return f"this ONNX Runtime has no CUDA provider{_and_why()} ({command}, in an environment without onnxruntime)"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(provider), mode=os.RTLD_LAZY)
    except OSError as error:
        return f"{' '.join(str(error).split())[:200]} ({how_to_install('gpu')})"
    return None


def _and_why() -> str:
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    return ", since onnxruntime and onnxruntime-gpu are both installed, in one folder" if len(both) == 2 else ""


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
