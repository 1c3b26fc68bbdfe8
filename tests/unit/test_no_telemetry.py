"""ONNX Runtime sends events to Microsoft by default, from 1.29 on. Nothing here lets it, unless the operator does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SAYS = "import {}, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"


@pytest.mark.parametrize("package", ["qwen3guard_runtime", "qwen3guard_export", "qwen3guard_apps"])
def test_every_package_that_loads_onnxruntime_turns_its_telemetry_off(package: str) -> None:
    without = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    for environment, wanted in ((without, "1\n"), (without | {"ORT_DISABLE_TELEMETRY": "0"}, "0\n")):
        command = [sys.executable, "-c", SAYS.format(package)]
        assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == wanted
