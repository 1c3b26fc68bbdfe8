"""Engines built for real by TensorRT for RTX, which needs no GPU to build; what runs them is in test_devices."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Literal

import pytest
import tensorrt_rtx
from qwen3guard_apps.cli.main import main
from qwen3guard_contract.errors import EngineError
from qwen3guard_contract.extras import how_to_install
from qwen3guard_contract.layout import GUARDS
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.slots import capacity_for
from qwen3guard_export import export, tensorrt
from qwen3guard_export.tensorrt import RTX_CAPABILITIES
from support.random_checkpoint import make


@pytest.mark.parametrize(("variant", "weights"), [("gen", "fp16"), ("stream", "fp16"), ("stream", "bf16")])
def test_an_engine_is_built_and_described(variant: Literal["gen", "stream"], weights: str, tmp_path: Path) -> None:
    said: list[str] = []
    output = tmp_path / "models"
    checkpoint = make(tmp_path / "checkpoint", variant, hidden=128, heads=16, kv_heads=8)
    manifest = export(str(checkpoint), output, weights=weights, tensorrt=True, slot_tokens=100, say=said.append)
    folder = GUARDS[variant].guard_folder(output)
    engine = manifest.engine
    assert engine is not None
    assert Manifest.read(folder) == manifest
    assert (engine.package, engine.version) == ("tensorrt_rtx", tensorrt_rtx.__version__)
    assert engine.compute_capabilities == RTX_CAPABILITIES
    assert engine.capacity == capacity_for(100) == 128
    assert [(profile.rows, profile.tokens) for profile in engine.profiles] == [(32, 16), (1, 128)]
    assert [profile.asked for profile in engine.profiles] == ([32, 32] if variant == "gen" else [512, 512])
    assert (folder / engine.file).stat().st_size > (folder / "model.onnx.data").stat().st_size
    assert engine.file in manifest.sha256
    assert {path.name for path in folder.iterdir()} == {*manifest.sha256, "manifest.json"}
    assert any(tensorrt_rtx.__version__ in line for line in said)


def test_every_cache_is_written_in_place_or_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that returns a new cache instead of updating its own would copy it at every step."""
    monkeypatch.setattr(tensorrt, "_caches_in_place", lambda *_: 3)
    checkpoint = make(tmp_path / "checkpoint", "stream")
    with pytest.raises(EngineError, match="updates 3 of 4 caches in place"):
        export(str(checkpoint), tmp_path / "models", weights="fp16", tensorrt=True, say=lambda _: None)
    assert not (tmp_path / "models").exists()


def test_weights_without_kernels_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    for weights, attention in (("fp32", None), ("dq8r", None), ("fp16", "paged")):
        folder = tmp_path / "models"
        with pytest.raises(EngineError, match="add --weights fp16"):
            export("nowhere", folder, tensorrt=True, say=lambda _: None, weights=weights, attention=attention)


def test_without_a_builder_the_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("qwen3guard_export.tensorrt.importlib.import_module", missing)
    with pytest.raises(EngineError, match=re.escape(how_to_install("tensorrt"))):
        export("nowhere", tmp_path, weights="fp16", tensorrt=True, say=lambda _: None)


def test_the_command_builds_in_fp16_unless_told_otherwise(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "stream")
    output = tmp_path / "models"
    assert main(["export", str(checkpoint), "--output", str(output), "--tensorrt", "--slot-tokens", "64"]) == 0
    manifest = Manifest.read(output / "stream_guard/1")
    assert (manifest.weights, manifest.attention) == ("fp16", "portable")
    assert manifest.engine is not None
    assert manifest.engine.capacity == 128


def test_a_builder_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attention in float32 has no kernel in TensorRT: its own reason is passed on."""
    monkeypatch.setattr(sys.modules["qwen3guard_export.export"], "check_can_build", lambda _: None)
    checkpoint = make(tmp_path / "checkpoint", "stream")
    arguments = ["export", str(checkpoint), "--output", str(tmp_path / "models"), "--tensorrt"]
    assert main([*arguments, "--weights", "fp32", "--attention", "portable"]) == 1
    assert "could not build the engine: " in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
