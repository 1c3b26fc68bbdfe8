"""Where a guard runs: the CPU, ONNX Runtime on a GPU, or a TensorRT engine; and the slots in that place's memory."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime
from qwen3guard_contract.errors import DeviceError, InvalidParameter
from qwen3guard_contract.integer_products import REPAIR, Products
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.slots import PADDING_CELLS, capacity_for

from qwen3guard_runtime.engine import cuda
from qwen3guard_runtime.engine.kv_cache import HOST, Memory
from qwen3guard_runtime.engine.onnx_runner import CUDA, OnnxRunner
from qwen3guard_runtime.engine.runner import Runner
from qwen3guard_runtime.engine.tensorrt_runner import TensorRTRunner
from qwen3guard_runtime.parameters import Parameters

DEVICES = ("auto", "cpu", "cuda", "tensorrt")


@dataclass(frozen=True)
class OpenedGuard:
    """`manifest` is the guard's, its context cut to what slots hold there."""

    manifest: Manifest
    runner: Runner
    memory: Memory
    products: Products | None = None
    """How products of integers come out exact; None where there are none."""


def open_guard(folder: Path, manifest: Manifest, options: Parameters) -> OpenedGuard:
    """Loads the guard where the parameter `device` says; `auto` is where it was exported for.

    `auto` falls back to the CPU with a warning where there is no such device; the others never do. Raises
    InvalidParameter, ExportMissing, CorruptFile, DeviceError or EngineMismatch.
    """
    wanted = options.one_of("device", DEVICES)
    device = _made_for(manifest) if wanted == "auto" else wanted
    try:
        if device == "tensorrt":
            return _tensorrt(folder, manifest)
        if device == "cuda":
            return _cuda(folder, manifest, options)
    except DeviceError as error:
        if wanted != "auto":
            raise
        logging.getLogger(__name__).warning("warning: The guard was made for %s and runs on the CPU: %s", device, error)
    runner = OnnxRunner(folder, manifest, threads=options.whole("threads"))
    _tell(runner.products)
    return OpenedGuard(manifest, runner, HOST, runner.products)


def _tell(products: Products | None) -> None:
    log = logging.getLogger(__name__)
    if products == "repaired":
        log.warning(
            "warning: The 8-bit products of this CPU saturate. ONNX Runtime repairs them (%s): verdicts are right, and"
            " long passes take longer than on a CPU with VNNI.",
            REPAIR[0],
        )
    elif products == "exact":
        log.info("The 8-bit products of this CPU are exact.")


def _made_for(manifest: Manifest) -> str:
    if manifest.engine:
        return "tensorrt"
    return manifest.form.device


def _tensorrt(folder: Path, manifest: Manifest) -> OpenedGuard:
    name = manifest.engine.package if manifest.engine else "tensorrt"
    try:
        package = importlib.import_module(name)
    except ImportError:
        raise DeviceError(f"{name} is not installed: pip install 'qwen3guard-triton[tensorrt]'.") from None
    device = cuda.Cuda(cuda.bindings())
    runner = TensorRTRunner(folder, manifest, device, package)
    return _on(device, manifest, runner, manifest.engine.capacity if manifest.engine else 0)


def _cuda(folder: Path, manifest: Manifest, options: Parameters) -> OpenedGuard:
    if CUDA not in onnxruntime.get_available_providers():
        raise DeviceError("This ONNX Runtime knows no CUDA: pip install 'qwen3guard-triton[gpu]'.")
    provider = _provider_options(options)
    device = cuda.Cuda(cuda.bindings(), int(provider.get("device_id", 0)))
    runner = OnnxRunner(folder, manifest, cuda=provider)
    tokens = min(manifest.context, options.whole("slot_tokens", at_least=1))
    return _on(device, manifest, runner, capacity_for(tokens))


def _on(device: cuda.Cuda, manifest: Manifest, runner: Runner, capacity: int) -> OpenedGuard:
    cut = replace(manifest, context=min(manifest.context, capacity - PADDING_CELLS))
    return OpenedGuard(cut, runner, cuda.DeviceMemory(device, capacity))


def _provider_options(options: Parameters) -> Mapping[str, str]:
    """The parameter `cuda_options`: a JSON object of ONNX Runtime's CUDA provider options."""
    text = options.text("cuda_options")
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidParameter(f"The parameter cuda_options is {text!r}; it must be a JSON object.")
    return {str(name): str(value) for name, value in found.items()}
