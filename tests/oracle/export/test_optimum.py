"""Optimum's exporter as the second oracle; refusals that need no Optimum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from qwen3guard_contract.errors import WrongArchitecture
from qwen3guard_contract.forms import Form
from qwen3guard_export import export
from qwen3guard_export.checkpoint.checkpoint import open_checkpoint
from qwen3guard_export.proof.bound_graph import BoundGraph, RowChunk
from qwen3guard_export.proof.optimum import OptimumMissing, export_with_optimum, optimum_logits
from support.random_checkpoint import make


@pytest.mark.filterwarnings("ignore")  # torch's and transformers' own
def test_our_graph_and_optimums_agree(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "gen", hidden=96, heads=8, kv_heads=2, head_dim=16)
    figures = export_with_optimum(str(checkpoint), tmp_path / "optimum")
    assert figures["one_pass"] < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "optimum"]
    export(str(checkpoint), tmp_path / "models", say=lambda _: None)
    architecture = open_checkpoint(str(checkpoint)).architecture
    tokens = np.random.default_rng(5).integers(0, architecture.vocab, 21)
    ours = BoundGraph(
        tmp_path / "models/gen_guard/1", architecture, Form("fp32", "decomposed"), slots=1, capacity=64
    ).run([RowChunk(0, 0, tokens)])
    theirs = optimum_logits(tmp_path / "optimum", architecture, tokens)
    assert np.abs(ours[0]["logits"] - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_stream_is_refused(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "stream")
    with pytest.raises(WrongArchitecture, match="Gen only"):
        export_with_optimum(str(checkpoint), tmp_path / "optimum")
    assert not (tmp_path / "optimum").exists()


def test_a_missing_optimum_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    with pytest.raises(OptimumMissing, match="pip install"):
        export_with_optimum(str(make(tmp_path / "checkpoint", "gen")), tmp_path / "optimum")


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        export_with_optimum(str(make(tmp_path / "checkpoint", "gen")), tmp_path)
