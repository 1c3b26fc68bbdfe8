"""Guards that cannot be loaded, and with which sentence. That it gets out of a server: test_serve, test_gen."""

from __future__ import annotations

from pathlib import Path

import pytest
from qwen3guard_contract import errors
from qwen3guard_export.repository import STREAM_PARAMETERS
from qwen3guard_runtime.gen.models import GuardTokenizerModel
from qwen3guard_runtime.stream.models import StreamGuardModel


def load(repository: Path, **parameters: str) -> StreamGuardModel:
    return StreamGuardModel(repository / "stream_guard" / "1", STREAM_PARAMETERS | parameters)


def test_a_budget_below_one_stream(repository: Path) -> None:
    with pytest.raises(errors.OverBudget, match="KV budget of 1000 bytes"):
        load(repository, kv_budget_bytes="1000")


def test_wrong_thresholds(repository: Path) -> None:
    sentence = r"^The parameter thresholds is wrong\. The threshold 'default' must be a number from 0 to 1\."
    with pytest.raises(errors.GuardError, match=sentence):
        load(repository, thresholds='{"default": 2}')


def test_a_truncated_graph_and_a_missing_one(copy: Path) -> None:
    graph = copy / "stream_guard" / "1" / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(errors.CorruptFile, match=r"model\.onnx"):
        load(copy)
    graph.unlink()
    with pytest.raises(errors.ExportMissing, match=r"model\.onnx is missing"):
        load(copy)
    graph.write_bytes(whole)
    load(copy)


def test_a_foreign_tokenizer(copy: Path) -> None:
    tokenizer = copy / "guard_tokenizer" / "1" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(errors.TokenizerMismatch, match="tokenizer"):
        GuardTokenizerModel(tokenizer.parent)
