"""Opens a guard on a device: with ONNX Runtime on the CPU or on a GPU, or as a TensorRT engine. Its KV slots are in the
device's memory."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime
from qwen3guard_contract.errors import DeviceError, InvalidParameter
from qwen3guard_contract.extras import how_to_install
from qwen3guard_contract.integer_products import REPAIR, Products
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.slots import PADDING_CELLS, capacity_for, whole_pages
from qwen3guard_contract.text import shown

from qwen3guard_runtime.engine import cuda
from qwen3guard_runtime.engine.broken_device import Watched
from qwen3guard_runtime.engine.cuda_session import CUDA, missing_library
from qwen3guard_runtime.engine.kv_cache import HOST, Memory
from qwen3guard_runtime.engine.onnx_runner import OnnxRunner
from qwen3guard_runtime.engine.paged_runner import PagedRunner
from qwen3guard_runtime.engine.runner import Runner
from qwen3guard_runtime.engine.tensorrt_runner import TensorRTRunner
from qwen3guard_runtime.parameters import Parameters

DEVICES = ("auto", "cpu", "cuda", "tensorrt")


@dataclass(frozen=True)
class OpenedGuard:
    """A loaded guard. `manifest` is the guard's, but its context is at most what a slot of the device can hold."""

    manifest: Manifest
    runner: Runner
    memory: Memory
    products: Products | None = None
    """Whether integer products are exact without help or by a repair; None if the graph has none."""
    device: str = "cpu"
    """The one of DEVICES that it runs on."""


@dataclass(frozen=True)
class CudaSettings:
    """What the parameters say of CUDA: the tokens of a slot, and ONNX Runtime's provider options."""

    slot_tokens: int
    provider: Mapping[str, str]
    device_id: int

    @classmethod
    def read(cls, parameters: Parameters) -> CudaSettings:
        """Raises InvalidParameter."""
        provider = parameters.options("cuda_options")
        number = provider.get("device_id", "0")
        if not (number.isascii() and number.isdigit()):
            raise InvalidParameter(
                f"The option device_id in cuda_options is {shown(number)}; it must be a whole number."
            )
        return cls(parameters.whole("slot_tokens", at_least=1), provider, int(number))


def open_guard(
    folder: Path, manifest: Manifest, parameters: Parameters, candidates: Sequence[int] = (0,)
) -> OpenedGuard:
    """Loads the guard on the device that the parameter `device` names. `auto` is the device that it was exported for.
    `candidates` are the token ids whose logits Gen needs beside those of the likeliest tokens.

    If that device is missing, `auto` falls back to the CPU with a warning, if the guard's form runs there; the other
    values never do. Raises InvalidParameter, ExportMissing, CorruptFile, DeviceError or EngineMismatch.
    """
    wanted = parameters.one_of("device", DEVICES)
    device = made_for(manifest) if wanted == "auto" else wanted
    settings = CudaSettings.read(parameters)  # what is wrong in them is told on every device
    try:
        if device == "tensorrt":
            return replace(_open_tensorrt(folder, manifest, candidates), device=device)
        if device == "cuda":
            return replace(_open_cuda(folder, manifest, settings, candidates), device=device)
    except DeviceError as error:
        if wanted != "auto" or not manifest.form.runs_on_cpu:
            raise
        logging.getLogger(__name__).warning("warning: The guard was made for %s and runs on the CPU: %s", device, error)
    # With more, a row's result may depend on its batch (OnnxRunner).
    threads = parameters.whole("threads", at_most=manifest.kv_heads)
    runner = OnnxRunner(folder, manifest, candidates, threads=threads)
    _log_products(runner.products)
    return OpenedGuard(manifest, runner, HOST, runner.products)


def _log_products(products: Products | None) -> None:
    log = logging.getLogger(__name__)
    if products == "repaired":
        log.warning(
            "warning: The 8-bit products of this CPU saturate. ONNX Runtime repairs them (%s): verdicts are right, and"
            " long passes take longer than on a CPU with VNNI.",
            REPAIR[0],
        )
    elif products == "exact":
        log.info("The 8-bit products of this CPU are exact.")


def made_for(manifest: Manifest) -> str:
    """The one of DEVICES that the guard was exported for."""
    return "tensorrt" if manifest.engine else manifest.form.device


def _open_tensorrt(folder: Path, manifest: Manifest, candidates: Sequence[int]) -> OpenedGuard:
    name = manifest.engine.package if manifest.engine else "tensorrt"
    try:
        package = importlib.import_module(name)
    except ImportError:
        raise DeviceError(f"{name} is not installed: {how_to_install('tensorrt')}.") from None
    device = cuda.Cuda(cuda.bindings())
    runner = TensorRTRunner(folder, manifest, device, package, candidates)
    return _opened_on(device, manifest, runner, manifest.engine.capacity if manifest.engine else 0)


def _open_cuda(folder: Path, manifest: Manifest, settings: CudaSettings, candidates: Sequence[int]) -> OpenedGuard:
    if CUDA not in onnxruntime.get_available_providers():
        raise DeviceError(f"This ONNX Runtime knows no CUDA: {missing_library() or how_to_install('gpu')}.")
    device = cuda.Cuda(cuda.bindings(), settings.device_id)
    tokens, provider = min(manifest.context, settings.slot_tokens), settings.provider
    if manifest.form.is_paged:
        return _opened_on(
            device, manifest, PagedRunner(folder, manifest, device, provider, candidates), whole_pages(tokens)
        )
    return _opened_on(device, manifest, OnnxRunner(folder, manifest, candidates, cuda=provider), capacity_for(tokens))


def _opened_on(device: cuda.Cuda, manifest: Manifest, runner: Runner, capacity: int) -> OpenedGuard:
    """The opened guard with slots of `capacity` cells in the device's memory."""
    padding = 0 if manifest.form.is_paged else PADDING_CELLS
    shortened = replace(manifest, context=min(manifest.context, capacity - padding))
    return OpenedGuard(shortened, Watched(runner, device), cuda.DeviceMemory(device, capacity))
