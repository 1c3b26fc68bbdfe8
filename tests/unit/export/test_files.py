"""What an export leaves on the disk: all of it, or nothing, and the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import onnx
import pytest
from qwen3guard_contract.forms import ATTENTION_FORMS, WEIGHT_FORMATS
from qwen3guard_contract.manifest import GEN_CHOICES, GEN_OUTPUTS, Manifest
from qwen3guard_export import export
from support.random_checkpoint import make

COMMON = {"manifest.json", "tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"}
FOLDERS = {"gen": ("gen_guard", "guard_tokenizer"), "stream": ("stream_guard", "stream_tokenizer")}


def silent(_: str) -> None:
    pass


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("variant", ["gen", "stream"])
def test_the_files_and_their_digests(variant: str, tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", variant)
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    said: list[str] = []
    manifest = export(str(checkpoint), tmp_path / "models", say=said.append)
    guard, tokenizer = (tmp_path / "models" / name / "1" for name in FOLDERS[variant])
    common = COMMON | {"chat_template.jinja"}
    assert {path.name for path in guard.iterdir()} == common | {"model.onnx", "model.onnx.data"}
    assert {path.name for path in tokenizer.iterdir()} == common
    assert {path.name for path in (tmp_path / "models").iterdir()} == set(FOLDERS[variant])
    assert [path.name for path in guard.parent.iterdir()] == ["1"]
    for name, digest in manifest.sha256.items():
        assert hashlib.sha256((guard / name).read_bytes()).hexdigest() == digest
    assert manifest.sha256.keys() == common - {"manifest.json"} | {"model.onnx", "model.onnx.data"}
    assert Manifest.read(guard) == Manifest.read(tokenizer) == manifest
    assert manifest.source == str(checkpoint)
    assert not manifest.demo
    assert manifest.versions.keys() >= {"onnx", "onnxruntime", "numpy", "python", "qwen3guard-triton"}
    assert len(said) >= 4


@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
def test_two_exports_are_byte_identical(weights: str, tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "gen")
    for name in ("one", "two"):
        export(str(checkpoint), tmp_path / name, weights=weights, say=silent)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_a_second_export_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    checkpoint, models = make(tmp_path / "checkpoint", "gen"), tmp_path / "models"
    (checkpoint / "chat_template.jinja").write_text("old")
    export(str(checkpoint), models, say=silent)
    for folder in FOLDERS["gen"]:
        (models / folder / "1" / "model.py").write_text("# another engineer's")
        (models / folder / "config.pbtxt").write_text("# too")
    (checkpoint / "chat_template.jinja").unlink()
    manifest = export(str(checkpoint), models, weights="dq8r", say=silent)
    for folder in FOLDERS["gen"]:
        assert (models / folder / "1" / "model.py").read_text() == "# another engineer's"
        assert (models / folder / "config.pbtxt").read_text() == "# too"
        assert not (models / folder / "1" / "chat_template.jinja").exists()
        assert Manifest.read(models / folder / "1") == manifest


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("stage", ["write_graph", "prove", "_sha256"])
def test_an_interrupted_export_leaves_the_former_one(
    failure: type[BaseException], stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    models = tmp_path / "models"
    export(str(make(tmp_path / "first", "gen", seed=1)), models, say=silent)
    before = snapshot(models)

    def interrupt(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(sys.modules["qwen3guard_export.export"], stage, interrupt)
    second = make(tmp_path / "second", "gen", seed=2)
    for output in (models, tmp_path / "fresh" / "deep"):
        with pytest.raises(failure):
            export(str(second), output, say=silent)
    assert snapshot(models) == before
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize("process", [999999999, os.getpid()], ids=["gone", "ours"])
def test_leftovers_of_a_killed_export_are_swept(process: int, tmp_path: Path) -> None:
    """Also those of our own process id: in a container, every export may be process 1."""
    models = tmp_path / "models"
    leftover = models / "gen_guard" / f".export-{process}"
    leftover.mkdir(parents=True)
    (leftover / "model.onnx.data").write_bytes(b"half")
    export(str(make(tmp_path / "checkpoint", "gen")), models, say=silent)
    assert not leftover.exists()


def test_demo_weights_are_declared(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "gen")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"demo_weights": True}))
    assert export(str(checkpoint), tmp_path / "models", say=silent).demo


def test_the_portable_graph_is_standard_onnx(tmp_path: Path) -> None:
    """What TensorRT is to read: opset 24, no operator of ONNX Runtime's own, names as the manifest has them."""
    checkpoint = make(tmp_path / "checkpoint", "gen")
    export(str(checkpoint), tmp_path / "models", attention="portable", say=silent)
    path = tmp_path / "models/gen_guard/1/model.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 24)]
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
    assert inputs[:5] == ["input_ids", "positions", "logit_index", "past_key.0", "past_value.0"]
    assert inputs[-1] == "candidates"
    assert outputs[:5] == [*GEN_OUTPUTS, *GEN_CHOICES, "present_key.0", "present_value.0"]


@pytest.mark.parametrize("form", ATTENTION_FORMS)
def test_unknown_forms_are_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights must be one of fp32, dq8r"):
        export("anything", tmp_path / "models", weights="int2", attention=form, say=silent)
    with pytest.raises(ValueError, match="attention must be one of"):
        export("anything", tmp_path / "models", attention="flash", say=silent)
