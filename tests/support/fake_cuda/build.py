"""Builds the CUDA libraries that ONNX Runtime's CUDA provider loads, from the C files here: none needs a device.

The real provider then places a graph, allocates, checks its inputs, queues its kernels and records its CUDA graphs on a
machine without a GPU. No kernel runs, so no value that comes back means anything.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parent
RUNTIME = "libcudart.so.13"
LIBRARIES = {
    RUNTIME: ("runtime.c", "-lpthread"),
    "libcublas.so.13": ("blas.c", "-DBLAS"),
    "libcublasLt.so.13": ("blas.c", "-DBLAS_LT"),
    "libcurand.so.10": ("driver.c",),
    "libcuda.so.1": ("driver.c",),
}
"""Each library's source, and further arguments for gcc."""
VERSIONED = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13")
"""Libraries whose symbols bear the library's name as their version."""


def build(folder: Path, headers: Path) -> None:
    """Writes the libraries into `folder`; `headers` has cuda_runtime_api.h. Raises CalledProcessError with what gcc
    says."""
    for name, (source, *arguments) in LIBRARIES.items():
        versions = []
        if name in VERSIONED:
            script = folder / f"{name}.map"
            script.write_text(f"{name} {{ global: *; }};\n")
            versions = [f"-Wl,--version-script,{script}"]
        command: list[str | Path] = [
            "gcc",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            f"-I{headers}",
            HERE / source,
        ]
        journal = [folder / RUNTIME] if source == "blas.c" else []
        subprocess.run(
            [*command, *journal, "-o", folder / name, f"-Wl,-soname,{name}", *versions, *arguments], check=True
        )
