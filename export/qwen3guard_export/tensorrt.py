"""Builds TensorRT engines from the portable graph.

TensorRT builds for the GPU of this machine. TensorRT for RTX builds without a GPU or a driver, for several generations
of GPUs at once. Both have the same API. This module knows the builder and the graph's tensor names, nothing of Qwen3.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from qwen3guard_contract.errors import EngineError
from qwen3guard_contract.extras import how_to_install
from qwen3guard_contract.forms import Form
from qwen3guard_contract.manifest import (
    GEN_OUTPUTS,
    GRAPH,
    GRAPH_CANDIDATES,
    GRAPH_INPUT_IDS,
    GRAPH_LOGIT_INDEX,
    GRAPH_POSITIONS,
    MOST_CANDIDATES,
    Engine,
    Profile,
)
from qwen3guard_contract.slots import CAPACITY, Cache

ENGINE = "model.engine"
TENSORRT, FOR_RTX = "tensorrt", "tensorrt_rtx"
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""The compute capabilities of the GPUs that an engine of TensorRT for RTX runs on."""
SLOT_TOKENS = 2048
"""The tokens that a slot holds by default. All slots of an engine have one size, and attention reads a whole slot."""
STEP = Profile(rows=32, tokens=16, asked=512)
"""The profile for the steps of many streams in one pass."""
CHUNK = Profile(rows=1, tokens=512, asked=512)
"""The profile for a part of a long conversation, alone in its pass."""
GEN_ASKED = 32
"""The most tokens of a pass whose logits Gen asks for. It needs few, and each row is as wide as the vocabulary."""
USUAL_CANDIDATES = 14
"""The first tokens of the values of an answer's three fields."""


def check_can_build(form: Form) -> None:
    """Raises EngineError where TensorRT has no kernels for a graph of this form, or no package is installed."""
    if not form.is_two_bytes or not form.is_standard:
        raise EngineError("An engine is built of a portable graph with fp16 or bf16 weights: add --weights fp16.")
    _package()


def build(folder: Path, variant: str, caches: Sequence[Cache], capacity: int) -> Engine:
    """Builds the engine from the portable graph in `folder`, beside it, and returns its entry for the manifest.

    Raises EngineError where neither package is installed, or where the builder cannot read the graph, would copy a
    cache, or fails.
    """
    package = _package()
    logger = _logger(package)
    builder = package.Builder(logger)
    network = builder.create_network(_strongly_typed(package))
    parser = package.OnnxParser(network, logger)
    with _with_fixed_capacity(folder / GRAPH, capacity) as graph:
        if not parser.parse_from_file(str(graph)):
            reason = parser.get_error(0).desc() if parser.num_errors else "it gives no reason"
            raise EngineError(f"{_name(package)} cannot read the graph: {reason.splitlines()[0]}")
    if (in_place := _caches_in_place(package, network)) != len(caches):
        raise EngineError(
            f"{_name(package)} updates {in_place} of {len(caches)} caches in place and would copy the rest."
        )

    if variant == "gen":
        _leave_logits(network)
    profiles = [_fitted(profile, variant, capacity) for profile in (STEP, CHUNK)]
    config = builder.create_builder_config()
    for profile in profiles:
        optimization = _optimization(builder, profile, caches, capacity)
        if variant == "gen":
            optimization.set_shape(GRAPH_CANDIDATES, (1,), (USUAL_CANDIDATES,), (MOST_CANDIDATES,))
        config.add_optimization_profile(optimization)
    capabilities = _target(package, config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{_name(package)} could not build the engine: {logger.last or 'it gives no reason'}")
    with (folder / ENGINE).open("wb") as file:
        file.write(plan)
    return Engine(
        file=ENGINE,
        package=package.__name__,
        version=package.__version__,
        compute_capabilities=capabilities,
        capacity=capacity,
        profiles=tuple(profiles),
    )


def _package() -> ModuleType:
    """TensorRT where there is a GPU and it is installed, else TensorRT for RTX. Raises EngineError where it is
    missing."""
    for name in (TENSORRT, FOR_RTX) if _has_gpu() else (FOR_RTX,):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise EngineError(f"There is nothing to build an engine with: {how_to_install('tensorrt')}.")


def _has_gpu() -> bool:
    """Whether NVIDIA's driver finds a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _name(package: ModuleType) -> str:
    return {TENSORRT: "TensorRT", FOR_RTX: "TensorRT for RTX"}[package.__name__] + f" {package.__version__}"


def _logger(package: ModuleType) -> Any:
    class Logger(package.ILogger):  # type: ignore[name-defined,misc]
        """Keeps the first line of the last error, for our error's sentence."""

        last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= package.ILogger.Severity.ERROR:
                self.last = message.splitlines()[0]

    return Logger()


def _strongly_typed(package: ModuleType) -> int:
    """The flag that makes TensorRT compute in the graph's own types; newer versions always do, and have no flag."""
    flag = getattr(package.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


@contextmanager
def _with_fixed_capacity(graph: Path, capacity: int) -> Iterator[Path]:
    """Yields a copy of the graph with caches of `capacity` cells, and removes it afterwards.

    TensorRT writes caches in place only if their length is fixed.
    """
    model = onnx.load(graph, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == CAPACITY:
                dim.dim_value = capacity
    fixed = graph.with_name(f"fixed-{graph.name}")
    try:
        fixed.write_bytes(model.SerializeToString())
        yield fixed
    finally:
        fixed.unlink(missing_ok=True)


def _leave_logits(network: Any) -> None:
    """Makes the logits no output, because every output of an engine needs a buffer."""
    for index in reversed(range(network.num_outputs)):
        if network.get_output(index).name in GEN_OUTPUTS:
            network.unmark_output(network.get_output(index))


def _caches_in_place(package: ModuleType, network: Any) -> int:
    """How many caches the network updates in place."""
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    return kinds.count(package.LayerType.KV_CACHE_UPDATE)


def _fitted(profile: Profile, variant: str, capacity: int) -> Profile:
    """The profile with no more tokens than a slot has cells, and for Gen with fewer logits."""
    asked = min(profile.asked, GEN_ASKED) if variant == "gen" else profile.asked
    return replace(profile, tokens=min(profile.tokens, capacity), asked=asked)


def _optimization(builder: Any, profile: Profile, caches: Sequence[Cache], capacity: int) -> Any:
    """TensorRT's profile. It is tuned for one token of one row where rows share a pass, else for the longest row."""
    usual = 1 if profile.rows > 1 else profile.tokens
    optimization = builder.create_optimization_profile()

    def shape(name: str, *sizes: tuple[int, ...]) -> None:
        optimization.set_shape(name, *sizes)

    shape(GRAPH_INPUT_IDS, (1, 1), (1, usual), (profile.rows, profile.tokens))
    shape(GRAPH_POSITIONS, (1,), (1,), (profile.rows,))
    shape(GRAPH_LOGIT_INDEX, (1, 2), (1, 2), (profile.asked, 2))
    for cache in caches:
        cells = cache.shape(capacity)
        shape(cache.past, (1, *cells), (1, *cells), (profile.rows, *cells))
    return optimization


def _target(package: ModuleType, config: Any) -> tuple[str, ...]:
    """The compute capabilities that the engine will run on: this GPU's, or all of RTX_CAPABILITIES."""
    if package.__name__ == TENSORRT:
        return (_device_capability(),)
    config.num_compute_capabilities = len(RTX_CAPABILITIES)
    for index, capability in enumerate(RTX_CAPABILITIES):
        config.set_compute_capability(getattr(package.ComputeCapability, f"SM{capability.replace('.', '')}"), index)
    return RTX_CAPABILITIES


def _device_capability() -> str:
    driver = ctypes.CDLL("libcuda.so.1")
    major, minor, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return f"{major.value}.{minor.value}"
