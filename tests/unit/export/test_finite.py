"""What leaves the finite numbers reaches the logits of every later token, through integers too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from qwen3guard_contract.forms import ATTENTION_FORMS, Form
from qwen3guard_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qwen3guard_export.graph.write import write_graph
from qwen3guard_export.proof.bound_graph import BoundGraph, RowChunk
from support.changed_weights import Change, Changed
from support.random_checkpoint import make

POISON = 7
AT = 11
"""Where the poison stands, of 30 tokens."""


LAST = 2


@pytest.fixture(scope="module", params=[("gen", 0), ("stream", 0), ("gen", LAST), ("stream", LAST)])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, int]:
    """One token overflows one channel of the residual stream in a layer; all others are as they were.

    Its embedding is the only one in channel 0, whose gate and up answer so loudly that down gives infinity, in channel
    1 alone. The norm after it makes zeros of that row, but for one NaN: what a maximum passes over.
    """
    variant, where = request.param
    opened = open_checkpoint(str(make(tmp_path_factory.mktemp("poison") / "checkpoint", variant, layers=LAST + 1)))

    def embedding(table: np.ndarray) -> np.ndarray:
        table = table.copy()
        table[:, 0] = 0
        table[POISON] = 0
        table[POISON, 0] = 1
        return table

    def silent(matrix: np.ndarray) -> np.ndarray:
        """Writes nothing into channel 0."""
        matrix = matrix.copy()
        matrix[0] = 0
        return matrix

    def loud(matrix: np.ndarray) -> np.ndarray:
        matrix = matrix.copy()
        matrix[0] = 0
        matrix[0, 0] = 1e12
        return matrix

    def overflowing(matrix: np.ndarray) -> np.ndarray:
        matrix = silent(matrix)
        matrix[:, 0] = 0
        matrix[1, 0] = 1e16
        return matrix

    changes: dict[str, Change] = {"model.embed_tokens.weight": embedding}
    for layer in range(LAST + 1):
        changes[f"model.layers.{layer}.self_attn.o_proj.weight"] = silent
        changes[f"model.layers.{layer}.mlp.down_proj.weight"] = silent
    changes[f"model.layers.{where}.mlp.gate_proj.weight"] = changes[f"model.layers.{where}.mlp.up_proj.weight"] = loud
    changes[f"model.layers.{where}.mlp.down_proj.weight"] = overflowing

    class Poisoned(Changed):
        def stored(self, name: str) -> np.ndarray:
            return self.float32(name) if name in self.changes else super().stored(name)

        def float32(self, name: str) -> np.ndarray:
            found = super(Changed, self).stored(name).astype(np.float32)
            return self.changes[name](found) if name in self.changes else found

    return replace(opened, weights=Poisoned(opened.weights.tensors, changes)), where


FORMS = [
    *((weights, form) for weights in ("fp32", "dq8r") for form in ATTENTION_FORMS if not form.startswith("paged")),
    ("bf16", "paged"),
]


@pytest.mark.parametrize(("weights", "form"), FORMS)
@pytest.mark.parametrize("pieces", [[30], [5, 10, 15], [12] + [1] * 18])
def test_no_token_that_sees_it_is_finite(
    case: tuple[Checkpoint, int], weights: str, form: str, pieces: list[int], tmp_path: Path
) -> None:
    """Behind the last layer's attention no other token sees it."""
    checkpoint, where = case
    write_graph(checkpoint, tmp_path, Form.named(weights, form))
    graph = BoundGraph(tmp_path, checkpoint.architecture, Form.named(weights, form), slots=1, capacity=64)
    row = np.random.default_rng(3).integers(20, 260, 30)
    clean = graph.run_pieces(0, row, pieces)
    assert all(np.isfinite(values).all() for values in clean.values())
    row[AT] = POISON
    for name, values in graph.run_pieces(0, row, pieces).items():
        finite = np.isfinite(values).all(axis=1)
        before = values[:AT][finite[:AT]]  # in one pass, those before it may be lost too
        np.testing.assert_allclose(before, clean[name][:AT][finite[:AT]], rtol=1e-4, atol=1e-5)
        assert not finite[AT]
        assert finite[AT + 1 :].all() if where == LAST else not finite[AT:].any()


@pytest.mark.parametrize(("weights", "form"), FORMS)
def test_behind_a_rewind_it_is_an_error_and_never_a_number(
    case: tuple[Checkpoint, int], weights: str, form: str, tmp_path: Path
) -> None:
    """A hidden NaN times a share of 0 is still NaN: what a session answers then is an error, until its slot is
    cleared. It is never another number than without the poison."""
    checkpoint, _ = case
    write_graph(checkpoint, tmp_path, Form.named(weights, form))
    graph = BoundGraph(tmp_path, checkpoint.architecture, Form.named(weights, form), slots=1, capacity=64)
    row = np.random.default_rng(3).integers(20, 260, 30)
    clean = graph.run([RowChunk(0, 0, row)])[0]
    poisoned = row[: AT + 1].copy()
    poisoned[AT] = POISON
    graph.run([RowChunk(0, 0, poisoned)])
    for name, values in graph.run([RowChunk(0, AT, row[AT:])])[0].items():
        finite = np.isfinite(values).all(axis=1)
        np.testing.assert_allclose(values[finite], clean[name][AT:][finite], rtol=1e-4, atol=1e-5)
