"""Exported graphs against PyTorch: every shape, every form, every way the server writes a slot.

At full length, every shape in every form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from qwen3guard_contract.errors import WrongShape
from qwen3guard_contract.forms import Form
from qwen3guard_contract.layout import GUARDS
from qwen3guard_contract.manifest import GRAPH, Manifest
from qwen3guard_export import export
from qwen3guard_export.checkpoint.checkpoint import open_checkpoint
from qwen3guard_export.proof.bound_graph import BoundGraph, RowChunk
from qwen3guard_export.proof.operators import is_standard, operators
from support.export_oracle import Oracle, difference
from support.lengths import pairs
from support.random_checkpoint import make

pytestmark = pytest.mark.trial

BOUND = 1e-4
CAPACITY = 64

SHAPES: dict[str, dict[str, Any]] = {
    "gen 0.6B ratio, tied": {
        "variant": "gen", "hidden": 128, "layers": 3, "heads": 16, "kv_heads": 8, "head_dim": 16, "ffn": 192,
    },
    "gen 4B ratio, untied, sharded": {
        "variant": "gen", "hidden": 80, "heads": 32, "kv_heads": 8, "head_dim": 8, "ffn": 160, "tied": False,
        "shards": 3,
    },
    "gen MHA, fp32": {"variant": "gen", "heads": 4, "kv_heads": 4, "dtype": "fp32"},
    "gen odd sizes, fp16": {
        "variant": "gen", "hidden": 37, "layers": 1, "heads": 3, "kv_heads": 1, "head_dim": 10, "ffn": 53,
        "vocab": 301, "dtype": "fp16", "rope_theta": 1e4,
    },
    "stream 0.6B ratio": {
        "variant": "stream", "hidden": 128, "layers": 3, "heads": 16, "kv_heads": 8, "head_dim": 16, "ffn": 192,
    },
    "stream 8B ratio, sharded, fp16": {
        "variant": "stream", "hidden": 96, "heads": 32, "kv_heads": 8, "head_dim": 12, "ffn": 130, "inner": 48,
        "dtype": "fp16", "shards": 2,
    },
    "stream MHA, odd, fp32": {
        "variant": "stream", "hidden": 45, "heads": 3, "kv_heads": 3, "head_dim": 14, "ffn": 61, "inner": 19,
        "dtype": "fp32",
    },
}  # fmt: skip


PLAIN = ("fp32", "decomposed")
"""Of every shape. In `make test`, each other form is tried with one shape in three."""
EXACT = (("fp32", "decomposed"), ("fp32", "portable"))
PAGED = (("fp16", "paged"), ("bf16", "paged"), ("fp16", "paged_half"))
HALVES = (("fp16", "portable"), ("bf16", "portable"), *PAGED)
EIGHT_BITS = (("dq8r", "decomposed"), ("fp32", "int8"), ("dq8r", "int8"))
KV_DTYPES = {"fp32": "float32", "dq8r": "float32", "fp16": "float16", "bf16": "bfloat16"}
BOUNDS = {"fp32": BOUND, "fp16": 5e-3, "bf16": 4e-2}
"""Of the logits' scale: some roundings of each type, 2^-11 and 2^-8 for the halves."""


def bound_of(weights: str, attention: str) -> float:
    """A residual stream of two bytes is rounded once more in each half of a layer."""
    return BOUNDS[weights] * (2 if attention == "paged_half" else 1)


@dataclass
class Guard:
    """One checkpoint, its oracle, and its graphs by (weights, attention), exported when they are asked for."""

    checkpoint: Path
    rows: list[np.ndarray]
    manifests: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    answers: dict[bytes, dict[str, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.oracle = Oracle(self.checkpoint)
        self.architecture = open_checkpoint(str(self.checkpoint)).architecture

    def expected(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """The oracle's logits, computed once for each row."""
        key = row.tobytes()
        if key not in self.answers:
            self.answers[key] = self.oracle.logits(row)
        return self.answers[key]

    def folder(self, weights: str, attention: str) -> Path:
        key, output = (weights, attention), self.checkpoint.parent / f"{weights}-{attention}"
        if key not in self.manifests:
            self.manifests[key] = export(
                str(self.checkpoint), output, weights=weights, attention=attention, say=lambda _: None
            )
        return GUARDS[self.manifests[key].variant].guard_folder(output)

    def bound(self, attention: str = "decomposed", weights: str = "fp32", **options: Any) -> BoundGraph:
        sizes = {"slots": len(self.rows), "capacity": CAPACITY} | options
        return BoundGraph(self.folder(weights, attention), self.architecture, Form.named(weights, attention), **sizes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Guard]:
    """The guard of a shape: of one object for all tests, in whatever order they ask."""

    @cache
    def make_one(shape: str) -> Guard:
        seed = list(SHAPES).index(shape)
        checkpoint = make(tmp_path_factory.mktemp("guard") / "checkpoint", seed=seed, **SHAPES[shape])
        random = np.random.default_rng(seed)
        vocab = open_checkpoint(str(checkpoint)).architecture.vocab
        return Guard(checkpoint, [random.integers(0, vocab, length) for length in (17, 31, 1, 24)])

    return make_one


@pytest.fixture(params=list(SHAPES))
def guard(request: pytest.FixtureRequest, made: Callable[[str], Guard]) -> Guard:
    return made(request.param)


def exists(shape: str, attention: str) -> bool:
    """ONNX Runtime's paged attention takes heads of a multiple of eight."""
    return not attention.startswith("paged") or SHAPES[shape].get("head_dim", 16) % 8 == 0


TRIED = {
    (shape, *form)
    for shape, form in pairs(list(SHAPES), [PLAIN, *EXACT[1:], *HALVES, *EIGHT_BITS], 3)
    if exists(shape, form[1])
} | {(shape, *PLAIN) for shape in SHAPES}


def of_forms(forms: Sequence[tuple[str, str]]) -> pytest.MarkDecorator:
    """Each shape in those of `forms` that are tried with it."""
    chosen = [(shape, *form) for shape in SHAPES for form in forms if (shape, *form) in TRIED]
    return pytest.mark.parametrize(("guard", "weights", "attention"), chosen, indirect=["guard"])


FORMS = of_forms((*EXACT, *HALVES))


@FORMS
def test_one_pass_agrees_with_torch_at_every_position(guard: Guard, weights: str, attention: str) -> None:
    graph = guard.bound(attention, weights)
    for row in guard.rows:
        assert difference(graph.run([RowChunk(0, 0, row)])[0], guard.expected(row)) < bound_of(weights, attention)


@FORMS
def test_random_chunks_and_single_tokens_agree_with_torch(guard: Guard, weights: str, attention: str) -> None:
    graph, random = guard.bound(attention, weights), np.random.default_rng(1)
    for row in guard.rows:
        cuts = np.sort(random.choice(np.arange(1, len(row)), min(4, len(row) - 1), replace=False))
        lengths = np.diff([0, *cuts, len(row)]).tolist()
        expected = guard.expected(row)
        assert difference(graph.run_pieces(0, row, lengths), expected) < bound_of(weights, attention)
        assert difference(graph.run_pieces(1, row, [1] * len(row)), expected) < bound_of(weights, attention)


@FORMS
def test_ragged_batches_in_dirty_slots_agree_with_torch(guard: Guard, weights: str, attention: str) -> None:
    """Padding and a former sequence's keys and values must never be seen."""
    graph, random = guard.bound(attention, weights), np.random.default_rng(2)
    graph.fill_with_noise(random)
    expected = [guard.expected(row) for row in guard.rows]
    written = [0] * len(guard.rows)
    while any(done < len(row) for done, row in zip(written, guard.rows, strict=True)):
        chunks = []
        for slot, row in enumerate(guard.rows):
            # a finished row takes part again with its last token: a rewind by one
            start = min(written[slot], len(row) - 1)
            chunks.append(RowChunk(slot, start, row[start : start + int(random.integers(1, 9))]))
        for slot, found in enumerate(graph.run(chunks)):
            start = chunks[slot].position
            stop = start + len(chunks[slot].tokens)
            wanted = {name: values[start:stop] for name, values in expected[slot].items()}
            assert difference(found, wanted) < 2 * bound_of(
                weights, attention
            )  # of a smaller scale: that of these tokens
            written[slot] = stop


@FORMS
def test_a_rewind_forgets_what_stood_there(guard: Guard, weights: str, attention: str) -> None:
    graph = guard.bound(attention, weights)
    first, second = guard.rows[1], guard.rows[3]
    graph.run([RowChunk(0, 0, first)])
    rewritten = np.concatenate([first[:5], second[:6]])
    found = graph.run([RowChunk(0, 5, second[:6])])[0]
    expected = {name: values[5:] for name, values in guard.expected(rewritten).items()}
    assert difference(found, expected) < 2 * bound_of(weights, attention)


WHOLE = of_forms((PLAIN, *EIGHT_BITS))


@WHOLE
def test_a_row_is_bit_identical_alone_and_in_a_ragged_batch(guard: Guard, weights: str, attention: str) -> None:
    """In two passes, the second from different positions."""
    batch, alone = guard.bound(attention, weights), guard.bound(attention, weights)
    cuts = [len(row) // 2 for row in guard.rows]
    heads = [RowChunk(slot, 0, row[:cut]) for slot, (row, cut) in enumerate(zip(guard.rows, cuts, strict=True))]
    tails = [RowChunk(slot, cut, row[cut:]) for slot, (row, cut) in enumerate(zip(guard.rows, cuts, strict=True))]
    for chunks in (heads, tails):
        for together, chunk in zip(batch.run(chunks), chunks, strict=True):
            if not len(chunk.tokens):
                continue
            single = alone.run([chunk])[0]
            for name, values in single.items():
                np.testing.assert_array_equal(values, together[name])


@WHOLE
def test_single_tokens_are_bit_identical_beside_longer_chunks(guard: Guard, weights: str, attention: str) -> None:
    """A row of one token alone would take another path through ONNX Runtime's matrix kernels, if we let it."""
    token, long = guard.rows[0], guard.rows[1]
    batch, alone = guard.bound(attention, weights), guard.bound(attention, weights)
    for graph in (batch, alone):
        graph.run([RowChunk(0, 0, token[:9])])
    together = batch.run([RowChunk(0, 9, token[9:10]), RowChunk(1, 0, long)])[0]
    for name, values in alone.run([RowChunk(0, 9, token[9:10])])[0].items():
        np.testing.assert_array_equal(values, together[name])


@of_forms([("dq8r", "decomposed"), ("dq8r", "int8")])
@pytest.mark.parametrize("threads", [1, 2])
def test_capacity_does_not_change_a_bit(guard: Guard, threads: int, weights: str, attention: str) -> None:
    """Capacities are buckets: multiples of 64, so that the softmax sums in the same lanes."""
    row = guard.rows[1]
    threads = min(threads, guard.architecture.kv_heads)
    answers = [
        guard.bound(attention, weights, capacity=capacity, threads=threads).run([RowChunk(0, 0, row)])[0]
        for capacity in (64, 192, 1024)
    ]
    for answer in answers[1:]:
        for name, values in answer.items():
            np.testing.assert_array_equal(values, answers[0][name])


@of_forms(EIGHT_BITS)
def test_eight_bits_stay_near_fp32(guard: Guard, weights: str, attention: str) -> None:
    """On random weights, the worst case for quantization; no statement about a trained guard."""
    graph = guard.bound(attention, weights)
    for row in guard.rows:
        assert difference(graph.run([RowChunk(0, 0, row)])[0], guard.expected(row)) < 0.25


@of_forms([("fp32", "int8"), ("dq8r", "int8")])
def test_chunks_of_an_int8_cache_are_the_whole_to_the_bit(guard: Guard, weights: str, attention: str) -> None:
    """A cell is written once, from its own token; so in fp32 only the products' kernels may round otherwise."""
    graph, row = guard.bound(attention, weights), guard.rows[1]
    whole = graph.run([RowChunk(0, 0, row)])[0]
    for name, values in graph.run_pieces(1, row, [1, 7, 1, 10, len(row) - 19]).items():
        if weights == "dq8r":
            np.testing.assert_array_equal(values, whole[name])
        else:
            assert difference({name: values}, {name: whole[name]}) < 0.02


def test_only_the_asked_tokens_are_answered(guard: Guard) -> None:
    """In any order, twice, and none at all (a prefill that wants no logits)."""
    import onnxruntime as ort
    from qwen3guard_contract.manifest import (
        GEN_OUTPUTS,
        GRAPH_CANDIDATES,
        GRAPH_INPUT_IDS,
        GRAPH_LOGIT_INDEX,
        GRAPH_POSITIONS,
    )

    key = ("fp32", "decomposed")
    session = ort.InferenceSession(guard.folder(*key) / GRAPH, providers=["CPUExecutionProvider"])
    manifest, row = guard.manifests[key], guard.rows[0]
    slot = np.zeros((2, manifest.kv_heads, CAPACITY, manifest.head_dim), np.float32)
    feeds = {GRAPH_INPUT_IDS: np.stack([row, row[::-1]]), GRAPH_POSITIONS: np.zeros(2, np.int64)}
    feeds |= {graph_input.name: slot for graph_input in session.get_inputs() if "past" in graph_input.name}
    asked = np.array([[1, 3], [0, 16], [0, 2], [1, 3]], np.int64)
    is_gen = manifest.variant == "gen"
    outputs = GEN_OUTPUTS if is_gen else manifest.outputs
    feeds |= {GRAPH_CANDIDATES: np.zeros(1, np.int32)} if is_gen else {}
    answers = session.run(list(outputs), feeds | {GRAPH_LOGIT_INDEX: asked})
    oracles = [guard.expected(row), guard.expected(row[::-1].copy())]
    for name, values in zip(outputs, answers, strict=True):
        wanted = np.stack([oracles[r][name][column] for r, column in asked])
        assert difference({name: values}, {name: wanted}) < 2 * BOUND
    empty = session.run(list(manifest.outputs), feeds | {GRAPH_LOGIT_INDEX: np.zeros((0, 2), np.int64)})
    assert [len(values) for values in empty] == [0] * len(manifest.outputs)


@of_forms([("fp32", "portable"), ("fp16", "portable"), ("bf16", "portable")])
def test_a_portable_graph_is_of_standard_operators_alone(guard: Guard, weights: str, attention: str) -> None:
    found = operators(guard.folder(weights, attention) / GRAPH)
    assert is_standard(found)
    assert {operator for _, operator in found} >= {"TensorScatter", "Attention", "RotaryEmbedding", "RMSNormalization"}
    graph = onnx.load(guard.folder(weights, attention) / GRAPH, load_external_data=False)
    assert [opset.version for opset in graph.opset_import] == [24]
    assert not is_standard(operators(guard.folder("fp32", "decomposed") / GRAPH))


@pytest.mark.parametrize(("weights", "attention"), [("fp16", "decomposed"), ("bf16", "int8")])
def test_halves_have_no_graph_for_cpus(weights: str, attention: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{attention} does not go with {weights}"):
        export(str(make(tmp_path / "checkpoint", "gen")), tmp_path, weights=weights, attention=attention, say=print)
    assert not list(tmp_path.glob("gen_guard/**"))


@pytest.mark.parametrize("weights", ["fp32", "dq8r"])
def test_paged_attention_of_other_types_is_refused(weights: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"paged does not go with {weights} weights: .* for fp16 and bf16 alone"):
        export(str(make(tmp_path / "checkpoint", "gen")), tmp_path, weights=weights, attention="paged", say=print)


def test_paged_attention_of_other_heads_is_refused(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint", "gen", head_dim=10)
    with pytest.raises(WrongShape, match="heads of a multiple of 8, and these have 10"):
        export(str(checkpoint), tmp_path / "models", weights="fp16", attention="paged", say=lambda _: None)


@of_forms((*EXACT, *HALVES[:1], *EIGHT_BITS))
def test_the_manifest_tells_the_guard(guard: Guard, weights: str, attention: str) -> None:
    folder = guard.folder(weights, attention)
    manifest = guard.manifests[weights, attention]
    assert (manifest.weights, manifest.attention) == (weights, attention)
    assert manifest == Manifest.read(folder)
    assert manifest.layers == guard.architecture.layers
    assert manifest.parity["layer_worst"] < (0.05 if attention == "int8" else BOUNDS.get(weights, 0.05))
    assert manifest.parity["fp32_max"] < (0.25 if attention == "int8" else BOUNDS.get(weights, 0.25))
    assert manifest.form.kv_dtype == ("int8" if attention == "int8" else KV_DTYPES[weights])
    assert manifest.parity["batch_bit_identical"] == 1.0 or attention == "portable"


def test_the_canary_is_what_torch_answers(guard: Guard) -> None:
    guard.folder("fp32", "decomposed")
    canary = guard.manifests["fp32", "decomposed"].canary
    ids = list(canary.input_ids)
    if guard.architecture.variant == "stream":
        logits = guard.expected(np.array(ids))
        shares = [softmax(logits[name]).ravel() for name in ("risk_logits", "category_logits")]
        expected = np.concatenate(shares).tolist()
        assert len(expected) == 11 * len(ids)
    else:
        expected = []
        for _ in canary.values:
            last = np.log(softmax(guard.expected(np.array(ids))["logits"][-1]))
            expected.append(float(last.max()))
            ids.append(int(last.argmax()))
    assert canary.agrees(expected)
    assert not canary.agrees([1.1 * value for value in expected])


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
