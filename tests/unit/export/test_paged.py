"""Paged graphs with the roundings of the CUDA kernels, emulated in numpy: against float32, and against their proof."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from qwen3guard_contract.forms import Form
from qwen3guard_contract.manifest import GRAPH
from qwen3guard_export.checkpoint.checkpoint import Architecture, open_checkpoint
from qwen3guard_export.graph.attention import kv_caches
from qwen3guard_export.graph.write import write_graph
from qwen3guard_export.proof.bound_graph import BoundGraph, RowChunk
from qwen3guard_export.proof.reference import reference_logits
from support.paged_in_numpy import FLOATS, PAGE, Arrays, PagedGraph
from support.random_checkpoint import make

FORMS = [(weights, attention) for weights in ("fp16", "bf16") for attention in ("paged", "paged_half")]
BOUNDS = {"fp16": 5e-3, "bf16": 4e-2}
"""Of the logits' scale, as for other graphs in these types (oracle/export/test_graph.py)."""
TYPES = {"fp16": FLOATS[10], "bf16": FLOATS[16]}
VOCAB = 300
PAGES = np.array([[5, 0], [2, 6], [1, 3]], np.int32)
"""Each row's pages, in no order. Row 0 goes on from its first page into its second."""


class Emulated:
    """A paged graph in numpy, with its caches, which hold the leftovers of others."""

    def __init__(self, folder: Path, architecture: Architecture, form: Form) -> None:
        self._graph = PagedGraph(folder / GRAPH)
        self._is_gen = architecture.variant == "gen"
        self._caches = kv_caches(form, architecture)
        random = np.random.default_rng(9)
        shape = (7, PAGE, architecture.kv_heads, architecture.head_dim)
        self._held = [3 * random.standard_normal(shape).astype(TYPES[form.weights]) for _ in self._caches]

    def run(self, rows: Sequence[tuple[int, int, np.ndarray]]) -> Arrays:
        """Each row's place in PAGES, its position and its tokens; all are asked for."""
        places, positions, tokens = zip(*rows, strict=True)
        ids = np.concatenate(tokens).astype(np.int32)
        lengths = [len(each) for each in tokens]
        inputs = {
            "input_ids": ids,
            "positions": np.array(positions, np.int32),
            "logit_index": np.arange(len(ids), dtype=np.int32),
            "row_starts": np.cumsum([0, *lengths]).astype(np.int32),
            "pages": PAGES[list(places)],
            "bounds": np.array([max(lengths), 2 * PAGE], np.int32),
        } | {cache.past: held for cache, held in zip(self._caches, self._held, strict=True)}
        if self._is_gen:
            inputs["candidates"] = np.arange(VOCAB, dtype=np.int32)
        outputs = self._graph.run(inputs)
        if self._is_gen:  # of all tokens
            outputs["logits"] = outputs.pop("candidate_logits")
        self._held = [outputs.pop(cache.present) for cache in self._caches]
        return outputs


@pytest.mark.parametrize(("weights", "attention"), FORMS)
@pytest.mark.parametrize("variant", ["gen", "stream"])
def test_ragged_passes_over_scattered_pages_are_near_float32(
    variant: str, weights: str, attention: str, tmp_path: Path
) -> None:
    """One row crosses its pages' border token by token, beside others that begin; then the proof's own rewriting of the
    same graph gives the same but for a few roundings."""
    make(tmp_path / "checkpoint", variant, heads=4, kv_heads=2, head_dim=16, context=320)
    checkpoint, form = open_checkpoint(str(tmp_path / "checkpoint")), Form.named(weights, attention)
    write_graph(checkpoint, tmp_path, form)
    random = np.random.default_rng(1)
    rows = [random.integers(0, VOCAB, length) for length in (PAGE + 3, 9, 14)]
    expected = reference_logits(checkpoint, rows)
    graph = Emulated(tmp_path, checkpoint.architecture, form)
    found: list[list[Arrays]] = [[], [], []]
    for chunks in (
        [(0, 0, PAGE - 2)],
        [(0, PAGE - 2, PAGE - 1), (2, 0, 6)],
        [(2, 6, 7), (0, PAGE - 1, PAGE + 1), (1, 0, 9)],
        [(0, PAGE + 1, PAGE + 2)],
        [(0, PAGE + 2, PAGE + 3), (2, 7, 14)],
    ):
        outputs = graph.run([(row, begin, rows[row][begin:end]) for row, begin, end in chunks])
        ends = np.cumsum([end - begin for _, begin, end in chunks])[:-1]
        for number, (row, _, _) in enumerate(chunks):
            found[row].append({name: np.split(values, ends)[number] for name, values in outputs.items()})
    scale = 2 if form.has_half_residual else 1  # it is rounded once more in each half of a layer
    proved = BoundGraph(tmp_path, checkpoint.architecture, form, slots=1, capacity=2 * PAGE)
    for row, pieces in enumerate(found):
        for piece in pieces if variant == "gen" else ():
            tokens, largest, logprobs = piece["choices"].T
            np.testing.assert_array_equal(tokens, piece["logits"].argmax(axis=1))
            np.testing.assert_array_equal(largest, piece["logits"].max(axis=1))
            np.testing.assert_allclose(logprobs, log_softmax(piece["logits"]).max(axis=1), atol=1e-5)
        alone = proved.run([RowChunk(0, 0, rows[row])])[0]
        for name, wanted in expected[row].items():
            whole = np.concatenate([piece[name] for piece in pieces])
            largest = np.abs(wanted).max()
            assert np.abs(whole - wanted).max() < scale * BOUNDS[weights] * largest
            assert np.abs(whole - alone[name]).max() < scale * BOUNDS[weights] * largest
            assert np.abs(whole - alone[name]).mean() < 0.1 * scale * BOUNDS[weights] * largest


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
