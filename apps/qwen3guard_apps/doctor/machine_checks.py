"""Checks of `qwen3guard doctor` that this machine and this environment can run the embedded server."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from qwen3guard_contract import integer_products
from qwen3guard_contract.errors import DeviceError
from qwen3guard_contract.extras import how_to_install
from qwen3guard_contract.integer_products import Products
from qwen3guard_contract.parameters import set_variables
from qwen3guard_contract.text import shown
from qwen3guard_runtime.engine import gpu_trial
from qwen3guard_server import installation

from qwen3guard_apps.doctor.findings import Check, Finding

ONNXRUNTIME_AT_LEAST = (1, 25)
PACKAGES = ("numpy", "tokenizers", "jinja2")
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_BYTES = 64 << 20
"""Triton takes 1 MiB for each model, and more for large requests in flight."""
_REGION = re.compile(r"qwen3guard_(\d+)_")
"""The name of a server's shared memory, with the process id of its supervisor."""


def machine_checks(port: int | None, *, try_gpu: bool = False) -> Mapping[str, Check]:
    """The checks by name. `port` is the one that a server would take; None where a server runs already: no check. With
    `try_gpu`, there must be a GPU, and it is used."""
    checks: dict[str, Check] = {
        "python": python,
        "triton": triton,
        "onnxruntime": onnxruntime,
        "packages": packages,
        "shared memory": shared_memory,
        "parameters": set_by_variables,
        "cpu": cpu,
        "gpu": gpu_in_use if try_gpu else gpu,
    }
    return checks | ({"port": lambda: free_port(port)} if port else {})


def set_by_variables(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """The parameters that variables set for servers that are started in this environment."""
    said = [
        f"{model}'s {parameter} is {shown(environment[variable])} ({variable})"
        for variable, (model, parameter) in set_variables(environment).items()
    ]
    if said:
        yield Finding("parameters", "ok", f"The environment has priority over config.pbtxt: {', '.join(said)}.")


def python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] not in installation.PYTHONS:
        yield Finding("python", "failed", f"This is Python {version}: make the environment with 3.11 or 3.12.")
        return
    folder = installation.libpython_folder()
    yield Finding("python", "ok", f"Python {version}; its shared library is in {folder}.")


def triton() -> Iterator[Finding]:
    """Starts tritonserver and its Python stub with arguments under which they only print their usage."""
    wheel = installation.wheel()
    environment = installation.environment(wheel, installation.libpython_folder())
    for program, word in ((wheel / "bin" / "tritonserver", "Usage"), (installation.stub(wheel), "arguments")):
        done = subprocess.run(
            [program, "--help"] if word == "Usage" else [program],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        output = done.stdout + done.stderr
        if word not in output:
            why = (output.strip() or f"status {done.returncode}").splitlines()[-1][:200]
            yield Finding("triton", "failed", f"{program.name} does not start ({why}): install nvidia-pytriton again.")
            return
    version = importlib.metadata.version("nvidia-pytriton")
    yield Finding("triton", "ok", f"nvidia-pytriton {version}: tritonserver and its Python stub start.")


def onnxruntime() -> Iterator[Finding]:
    module = importlib.import_module("onnxruntime")
    numbers = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
    if numbers < ONNXRUNTIME_AT_LEAST:
        wanted = ".".join(map(str, ONNXRUNTIME_AT_LEAST))
        sentence = f"ONNX Runtime {module.__version__} is too old: pip install 'onnxruntime>={wanted}'."
        yield Finding("onnxruntime", "failed", sentence)
        return
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in module.get_available_providers())
    yield Finding("onnxruntime", "ok", f"ONNX Runtime {module.__version__} with {providers}.")


def packages() -> Iterator[Finding]:
    versions = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except ImportError:
            yield Finding("packages", "failed", f"{name} cannot be imported: {how_to_install('serve')}.")
    if len(versions) == len(PACKAGES):
        yield Finding("packages", "ok", f"{', '.join(versions)}.")


def shared_memory(folder: Path = SHARED_MEMORY) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    left = sum(region.stat().st_size for region in _left_over(folder))
    if free < SHARED_MEMORY_BYTES:
        sentence = (
            f"{folder} has {free >> 20} MiB free: give it {SHARED_MEMORY_BYTES >> 20}, in a container with shm_size."
        )
        yield Finding("shared memory", "failed", sentence)
    elif left:
        sentence = f"{folder} holds {left >> 20} MiB of servers that no longer run here: remove {_globs(folder)}."
        yield Finding("shared memory", "warning", sentence)
    else:
        yield Finding("shared memory", "ok", f"{folder} has {free >> 20} MiB free, and nothing is left over.")


def _left_over(folder: Path) -> list[Path]:
    """Shared memory of servers whose supervisor is gone."""
    matches = ((region, _REGION.match(region.name)) for region in folder.iterdir())
    return [region for region, match in matches if match and not Path(f"/proc/{match[1]}").exists()]


def _globs(folder: Path) -> str:
    return ", ".join(sorted({f"{'_'.join(region.name.split('_')[:2])}_*" for region in _left_over(folder)}))


def cpu(products: Callable[[], Products] = integer_products.products) -> Iterator[Finding]:
    """Whether weights and keys of eight bits are multiplied exactly: found by trial, not from the CPU's name."""
    try:
        kind = products()
    except DeviceError as error:
        yield Finding("cpu", "failed", str(error))
        return
    if kind == "exact":
        yield Finding("cpu", "ok", "Its 8-bit products are exact.")
    else:
        sentence = (
            "Its 8-bit products are wrong: they saturate, as it has neither VNNI nor AMX. ONNX Runtime repairs them"
            f" ({integer_products.REPAIR[0]}): verdicts are right, and long passes of a dq8r guard take longer."
        )
        yield Finding("cpu", "warning", sentence)


def gpu(devices: Sequence[Path] | None = None) -> Iterator[Finding]:
    gpus = sorted(Path("/dev").glob("nvidia[0-9]*")) if devices is None else devices
    if not gpus:
        yield Finding("gpu", "ok", "There is none; guards run on the CPU.")
        return
    if "CUDAExecutionProvider" in importlib.import_module("onnxruntime").get_available_providers():
        yield Finding("gpu", "ok", f"{len(gpus)}, and ONNX Runtime knows CUDA; --gpu tries it.")
    else:
        sentence = (
            f"There is one, but this ONNX Runtime cannot use CUDA: {how_to_install('gpu')} in an"
            " environment without the extra serve, or use the CPU."
        )
        yield Finding("gpu", "warning", sentence)


def gpu_in_use() -> Iterator[Finding]:
    """Runs a product on the GPU. What is missing is a DeviceError, and so a finding."""
    yield Finding("gpu", "ok", gpu_trial.try_gpu())


def free_port(port: int | None) -> Iterator[Finding]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            sentence = (
                f"Port {port} is taken ({error.strerror}): examine what is there with --url, or serve on another."
            )
            yield Finding("port", "warning", sentence)
            return
    yield Finding("port", "ok", f"Port {port} is free.")
