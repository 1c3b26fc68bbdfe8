"""Weights as safetensors reads them, and heads in another order, beside PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qwen3guard_contract.forms import Form
from qwen3guard_export import export
from qwen3guard_export.checkpoint.checkpoint import open_checkpoint
from qwen3guard_export.proof.bound_graph import BoundGraph, RowChunk
from support.export_oracle import Oracle, difference
from support.json_file import edit
from support.random_checkpoint import make


def test_heads_in_another_order_come_out_in_ours(tmp_path: Path) -> None:
    """One public server reads Unsafe and Controversial the wrong way round."""
    checkpoint = make(tmp_path / "checkpoint", "stream")
    for name in ("response_risk_level_map", "response_category_map", "query_risk_level_map", "query_category_map"):

        def turn(data: dict[str, Any], name: str = name) -> None:
            names = list(data[name].values())
            data[name] = {str(index): label for index, label in enumerate(names[2:] + names[:2])}

        edit(checkpoint, "config.json", turn)
    export(str(checkpoint), tmp_path / "models", say=lambda _: None)
    opened = open_checkpoint(str(checkpoint))
    assert opened.architecture.stream_heads[0].rows == (1, 2, 0)
    folder = tmp_path / "models/stream_guard/1"
    graph = BoundGraph(folder, opened.architecture, Form("fp32", "decomposed"), slots=1, capacity=64)
    tokens = np.arange(9)
    assert difference(graph.run([RowChunk(0, 0, tokens)])[0], Oracle(checkpoint).logits(tokens)) < 1e-4


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_weights_are_read_as_safetensors_reads_them(dtype: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    checkpoint = make(tmp_path / "checkpoint", "gen", dtype=dtype)
    weights = open_checkpoint(str(checkpoint)).weights
    for name, expected in load_file(checkpoint / "model.safetensors").items():
        np.testing.assert_array_equal(weights.float32(name), expected.float().numpy())
