"""A guard made for a GPU, served where there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

from qwen3guard_export import export
from qwen3guard_export.repository import place_models
from support.command import COMMAND
from support.places import DEMO
from support.serving import free_port


def test_the_command_that_serves_says_so_too(tmp_path: Path) -> None:
    """And the guard answers its canary: ready is said after that."""
    place_models(tmp_path, export(str(DEMO / "stream"), tmp_path, attention="gqa", say=lambda _: None))
    command: list[str | Path] = [COMMAND, "serve", "--model-repository", tmp_path, "--grpc-port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready on ")
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert "warning: The guard was made for cuda and runs on the CPU: This ONNX Runtime knows no CUDA" in said
