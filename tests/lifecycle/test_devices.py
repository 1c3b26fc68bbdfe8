"""A guard made for a GPU, served where there is none."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from qwen3guard_contract.extras import how_to_install
from qwen3guard_contract.manifest import Engine, Profile
from qwen3guard_export import export
from qwen3guard_export.repository import place_models
from support.command import COMMAND, fails, run
from support.places import DEMO
from support.serving import free_port


def test_the_command_that_serves_says_so_too(tmp_path: Path) -> None:
    """And the guard answers its canary: ready is said after that."""
    manifest = export(str(DEMO / "stream"), tmp_path, weights="fp16", say=lambda _: None)
    engine = Engine("model.engine", "tensorrt", "10.15", ("9.0",), 320, (Profile(rows=1, tokens=16, asked=16),))
    replace(manifest, engine=engine).write(tmp_path / "stream_guard" / "1")
    place_models(tmp_path, manifest)
    command: list[str | Path] = [COMMAND, "serve", "--model-repository", tmp_path, "--grpc-port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready on ")
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert "warning: The guard was made for tensorrt and runs on the CPU: tensorrt is not installed" in said


def test_a_guard_for_gpus_alone_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    """No CPU has paged attention, so there is nothing to fall back to."""
    manifest = export(str(DEMO / "stream"), tmp_path, weights="fp16", attention="paged", say=lambda _: None)
    place_models(tmp_path, manifest)
    started = run("serve", "--model-repository", tmp_path, "--grpc-port", free_port())
    fails(started, "This ONNX Runtime knows no CUDA", how_to_install("gpu").partition(" ")[2])
