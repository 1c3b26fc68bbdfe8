"""Finds the parts of the embedded server on this machine: the wheel's tritonserver, and the Python for its models.

The wheel's stub of the Python back end needs three things. It needs the shared libpython of the interpreter that this
environment was made with, and the wheel's own libraries (both by LD_LIBRARY_PATH, before what the user has in it, such
as CUDA's libraries). And it needs this environment's packages: its interpreter is isolated, ignores PYTHONPATH, and
uses the environment of the first python3 on PATH.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from qwen3guard_contract.errors import ServeError, UnsupportedPython
from qwen3guard_contract.extras import how_to_install

PYTHONS = ((3, 11), (3, 12))
"""The Pythons that nvidia-pytriton can be installed on: it needs a numpy below 2, which has no wheel for later ones."""

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Puts weights on pages of 2 MiB if the system has them, because a step spends most of its time reading all weights."""


def wheel() -> Path:
    """The wheel's tritonserver folder, found without importing the wheel. Raises ServeError or UnsupportedPython."""
    spec = importlib.util.find_spec("pytriton")
    for location in spec.submodule_search_locations or () if spec else ():
        triton = Path(location) / "tritonserver"
        if (triton / "bin" / "tritonserver").is_file():
            return triton
    raise not_installed("The embedded server")


def not_installed(what: str) -> ServeError:
    """The error for a missing part of the extra `serve`, named `what`. On a Python that is not in PYTHONS the extra
    does not help, and the error says so."""
    if _python() in PYTHONS:
        return ServeError(f"{what} is not installed: {how_to_install('serve')}.")
    major, minor = _python()
    return UnsupportedPython(
        f"The embedded server needs Python 3.11 or 3.12, and this is {major}.{minor}: "
        "serve from an environment of one of these, or in NVIDIA's container. The client works with this Python."
    )


def _python() -> tuple[int, int]:
    return sys.version_info[:2]


def stub(triton: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise UnsupportedPython(f"The embedded server has no stub for Python {version}; use 3.11 or 3.12.")
    return stub


def libpython_folder() -> Path:
    """The folder of this interpreter's shared libpython. Raises UnsupportedPython if it has none."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"libpython{version}.so.1.0"
    own = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"]
    for folder in [Path(folder) for folder in own if folder] + _linker_folders(name):
        if (folder / name).is_file():
            return folder
    raise UnsupportedPython(
        f"This Python has no {name}: install your system's libpython{version} package, "
        "or use an interpreter built with --enable-shared."
    )


def _linker_folders(library: str) -> list[Path]:
    """The folders where the system's linker finds `library`."""
    try:
        listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    return [Path(path).parent for path in re.findall(rf"{re.escape(library)} .*=> (\S+)", listing)]


VERTEX_AI = "AIP_"
"""How variables begin by which Triton takes itself for a part of Vertex AI, and opens no gRPC, whatever its flags
say."""


def environment(triton: Path, libpython: Path) -> dict[str, str]:
    """The environment variables of tritonserver. `triton` is what `wheel` returns, `libpython` the library's folder."""
    libraries = [libpython, triton.parents[1] / "nvidia_pytriton.libs", os.environ.get("LD_LIBRARY_PATH")]
    return (
        HUGE_PAGES
        | {name: value for name, value in os.environ.items() if not name.startswith(VERTEX_AI)}
        | {
            "LD_LIBRARY_PATH": ":".join(str(folder) for folder in libraries if folder),
            "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
        }
    )
