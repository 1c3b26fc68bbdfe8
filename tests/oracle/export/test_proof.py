"""What a proof refuses: exports that are broken in one place, in every weight format and attention form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from qwen3guard_contract.errors import ParityError
from qwen3guard_contract.forms import ATTENTION_FORMS, WEIGHT_FORMATS, Form
from qwen3guard_contract.manifest import GRAPH
from qwen3guard_export.checkpoint.checkpoint import Architecture, Checkpoint, block_tensor, open_checkpoint
from qwen3guard_export.graph import graph as graphs
from qwen3guard_export.graph.graph import EMBEDDED
from qwen3guard_export.graph.write import write_graph
from qwen3guard_export.proof.bound_graph import BoundGraph
from qwen3guard_export.proof.parity import prove
from qwen3guard_export.proof.texts import proof_rows
from support.changed_weights import Change, Changed
from support.lengths import pairs
from support.places import DEMO

LAYER = 2
FORMS = [
    (weights, form)
    for weights in WEIGHT_FORMATS
    for form in ATTENTION_FORMS
    if form == "portable" or (weights in ("fp32", "dq8r")) != form.startswith("paged")
]


@cache
def demo(variant: str) -> Checkpoint:
    return open_checkpoint(str(DEMO / variant))


def in_layer(**changes: Change) -> dict[str, Change]:
    return {block_tensor(LAYER, name.replace("__", ".")): change for name, change in changes.items()}


def bits(count: int) -> Change:
    """Each row rounded to that many bits."""

    def change(matrix: np.ndarray) -> np.ndarray:
        scale = np.abs(matrix).max(axis=1, keepdims=True) / (2 ** (count - 1) - 1)
        return (np.rint(matrix / scale) * scale).astype(np.float32)

    return change


def swapped_heads(matrix: np.ndarray) -> np.ndarray:
    heads = matrix.reshape(demo("gen").architecture.kv_heads, -1, matrix.shape[1])
    return heads[::-1].reshape(matrix.shape)


def shuffled_scales(matrix: np.ndarray) -> np.ndarray:
    """Each row as long as its neighbour."""
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    return matrix / largest * np.roll(largest, 1, axis=0)


BROKEN: dict[str, tuple[str, dict[str, Change]]] = {
    "no MLP": ("feed-forward of layer 2", in_layer(mlp__down_proj=np.zeros_like)),
    "no attention": ("attention of layer 2", in_layer(self_attn__o_proj=np.zeros_like)),
    "no k_norm": ("keys of layer 2", in_layer(self_attn__k_norm=np.ones_like)),
    "no q_norm": ("attention of layer 2", in_layer(self_attn__q_norm=np.ones_like)),
    "KV heads swapped": ("keys of layer 2", in_layer(self_attn__k_proj=swapped_heads)),
    "values of KV heads swapped": ("values of layer 2", in_layer(self_attn__v_proj=swapped_heads)),
    "3 bits in the MLP": ("feed-forward of layer 2", in_layer(mlp__up_proj=bits(3))),
    "4 bits in the MLP": ("feed-forward of layer 2", in_layer(mlp__down_proj=bits(4))),
    "4 bits in the attention": ("values of layer 2", in_layer(self_attn__v_proj=bits(4))),
    "scales of rows shuffled": ("attention of layer 2", in_layer(self_attn__o_proj=shuffled_scales)),
    "gate and up swapped": ("feed-forward of layer 2", in_layer(mlp__gate_proj=lambda gate: gate[::-1])),
}


def export_broken(folder: Path, changes: dict[str, Change], weights: str, form: str, variant: str = "gen") -> None:
    whole = demo(variant)
    write_graph(replace(whole, weights=Changed(whole.weights.tensors, changes)), folder, Form.named(weights, form))


def rows(variant: str = "gen") -> list[np.ndarray]:
    return [row[:90] for row in proof_rows(demo(variant).folder, demo(variant).architecture.context)]


@pytest.mark.parametrize(("weights", "form"), FORMS)
def test_what_is_whole_is_proved(weights: str, form: str, tmp_path: Path) -> None:
    export_broken(tmp_path, {}, weights, form)
    figures = prove(tmp_path, demo("gen"), Form.named(weights, form), rows()).figures
    assert 0 < figures["layer_mean"] <= figures["layer_worst"] < 0.05
    assert (figures["fp32_max"] > 1e-4) == (weights != "fp32" or form == "int8")


@pytest.mark.trial
@pytest.mark.parametrize(("broken", "form_of"), pairs(list(BROKEN), FORMS, 4))
def test_what_is_broken_in_one_layer_is_refused_by_its_name(
    broken: str, form_of: tuple[str, str], tmp_path: Path
) -> None:
    where, changes = BROKEN[broken]
    weights, form = form_of
    export_broken(tmp_path, changes, weights, form)
    with pytest.raises(ParityError, match=where):
        prove(tmp_path, demo("gen"), Form.named(weights, form), rows())


@pytest.mark.trial
@pytest.mark.parametrize(("shift", "form_of"), pairs(["positions", "frequencies"], FORMS, 2))
def test_rotations_that_are_off_by_one_are_refused(
    shift: str, form_of: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one position they cancel out between queries and keys: the cells tell, which other graphs may read."""
    weights, form = form_of
    whole = graphs.rope_tables
    axis = {"positions": 0, "frequencies": 1}[shift]
    monkeypatch.setattr(
        graphs, "rope_tables", lambda architecture: tuple(np.roll(each, -1, axis) for each in whole(architecture))
    )
    export_broken(tmp_path, {}, weights, form)
    with pytest.raises(ParityError, match="keys of layer 0"):
        prove(tmp_path, demo("gen"), Form.named(weights, form), rows())


def test_rotations_of_positions_that_no_row_reaches_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = graphs.rope_tables

    def late(architecture: Architecture) -> tuple[np.ndarray, ...]:
        tables = whole(architecture)
        for table in tables:
            table[300:] = table[299:-1].copy()
        return tables

    monkeypatch.setattr(graphs, "rope_tables", late)
    export_broken(tmp_path, {}, "fp32", "decomposed")
    with pytest.raises(ParityError, match=r"the rotation of position \d{3} "):
        prove(tmp_path, demo("gen"), Form("fp32", "decomposed"), rows())


@pytest.mark.parametrize(
    ("variant", "tensor", "where"),
    [
        ("gen", "model.embed_tokens.weight", "embedding|logits"),
        ("gen", "model.norm.weight", "logits"),
        ("stream", "query_risk_level_category_pre.weight", "query risk logits"),
        ("stream", "category_head.weight", "category logits"),
        ("stream", "risk_level_category_layernorm.weight", "risk logits"),
    ],
)
@pytest.mark.parametrize("weights", ["fp32", "dq8r", "fp16"])
def test_ends_that_are_broken_are_refused(variant: str, tensor: str, where: str, weights: str, tmp_path: Path) -> None:
    form = "portable" if weights == "fp16" else "decomposed"
    export_broken(tmp_path, {tensor: lambda values: values[::-1]}, weights, form, variant)
    with pytest.raises(ParityError, match=where):
        prove(tmp_path, demo(variant), Form.named(weights, form), rows(variant))


def test_half_a_layer_that_is_off_by_a_fiftieth_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than what saturated products or weights of four bits do to it."""
    export_broken(tmp_path, {}, "dq8r", "decomposed")
    run = BoundGraph.run

    def off(self: BoundGraph, chunks: list) -> list:
        found = run(self, chunks)
        between, behind = f"residual.{LAYER}.attention", f"residual.{LAYER}.feed_forward"
        return [
            each | {behind: each[between] + 1.02 * (each[behind] - each[between])} if behind in each else each
            for each in found
        ]

    monkeypatch.setattr(BoundGraph, "run", off)
    with pytest.raises(ParityError, match="feed-forward of layer 2"):
        prove(tmp_path, demo("gen"), Form("dq8r", "decomposed"), rows())


def test_a_graph_that_is_watched_and_one_that_is_served_must_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_broken(tmp_path, {}, "fp32", "decomposed")
    run = BoundGraph.run

    def other(self: BoundGraph, chunks: list) -> list:
        found = run(self, chunks)
        return found if EMBEDDED in found[0] else [each | {"logits": 1.01 * each["logits"]} for each in found]

    monkeypatch.setattr(BoundGraph, "run", other)
    with pytest.raises(ParityError, match="logits are others in a longer slot"):
        prove(tmp_path, demo("gen"), Form("fp32", "decomposed"), rows())


class ChangedTable(Changed):
    """As stored, too: the embeddings are."""

    def stored(self, name: str) -> np.ndarray:
        found = super().stored(name)
        return self.changes[name](found) if name in self.changes else found

    def float32(self, name: str) -> np.ndarray:
        return self.stored(name).astype(np.float32)


def test_what_a_long_embedding_rounds_off_is_no_error(tmp_path: Path) -> None:
    """Its logit is off by as much as the vector is long, here 6.6e-5 of the token's largest logit."""
    whole = demo("gen")

    def one_long(table: np.ndarray) -> np.ndarray:
        table = table.astype(np.float32)
        table[500] *= 30_000
        return table

    long = ChangedTable(whole.weights.tensors, {"model.embed_tokens.weight": one_long})
    loud = replace(whole, weights=long)
    write_graph(loud, tmp_path, Form("fp32", "decomposed"))
    prove(tmp_path, loud, Form("fp32", "decomposed"), rows())


@pytest.mark.parametrize("weights", ["fp32", "dq8r", "fp16"])
def test_embeddings_of_tokens_that_no_text_has_are_checked(weights: str, tmp_path: Path) -> None:
    whole, form = demo("stream"), "portable" if weights == "fp16" else "decomposed"
    unread = next(token for token in range(1000, 8000) if not any(token in row for row in rows("stream")))

    def other(table: np.ndarray) -> np.ndarray:
        table = table.copy()
        table[unread] *= 2
        return table

    changed = ChangedTable(whole.weights.tensors, {"model.embed_tokens.weight": other})
    write_graph(replace(whole, weights=changed), tmp_path, Form.named(weights, form))
    with pytest.raises(ParityError, match="the embedding of a token"):
        prove(tmp_path, whole, Form.named(weights, form), rows("stream"))


@pytest.mark.parametrize(("weights", "form"), [("fp32", "decomposed"), ("dq8r", "int8"), ("fp32", "portable")])
@pytest.mark.parametrize("factors", [(3e9, 3e9), (1e-30, 1e20)])
def test_scores_that_could_pass_the_mask_are_refused(
    weights: str, form: str, factors: tuple[float, float], tmp_path: Path
) -> None:
    """A hidden cell is one whose score is -1e30 less: an infinite or enormous one would be seen all the same."""
    whole = demo("gen")
    changes = in_layer(
        self_attn__q_norm=lambda norm: norm * np.float32(factors[0]),
        self_attn__k_norm=lambda norm: norm * np.float32(factors[1]),
    )
    loud = replace(whole, weights=Changed(whole.weights.tensors, changes))
    write_graph(loud, tmp_path, Form.named(weights, form))
    with pytest.raises(ParityError, match=r"The scores of layer 2 may be"):
        prove(tmp_path, loud, Form.named(weights, form), rows())


def louder(matrix: np.ndarray) -> np.ndarray:
    return matrix * np.float32(2.0**12)


def softer(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.float32(2.0**12)


@pytest.mark.parametrize(("weights", "refused"), [("fp16", True), ("bf16", False), ("fp32", False)])
def test_what_outgrows_float16_is_refused_and_told_of_bf16(weights: str, refused: bool, tmp_path: Path) -> None:
    """The function is the same: what goes into down_proj is larger, and its weights smaller. ONNX Runtime on a CPU
    computes float16 in float32 and would show nothing."""
    changes = in_layer(mlp__up_proj=louder, mlp__down_proj=softer)
    whole = demo("gen")
    loud = replace(whole, weights=Changed(whole.weights.tensors, changes))
    write_graph(loud, tmp_path, Form.named(weights, "portable"))
    if not refused:
        assert prove(tmp_path, loud, Form.named(weights, "portable"), rows(), original=whole).figures["fp32_max"] < 0.02
        return
    with pytest.raises(
        ParityError, match=r"up_proj.* leaves float16: .*; export in bf16\.|down_proj.*export in bf16\."
    ):
        prove(tmp_path, loud, Form.named(weights, "portable"), rows())


@pytest.mark.parametrize("form", ["decomposed", "int8"])
def test_weights_that_could_leave_float32_are_refused_where_integers_would_hide_it(form: str, tmp_path: Path) -> None:
    whole = demo("gen")
    huge = replace(whole, weights=Changed(whole.weights.tensors, in_layer(mlp__gate_proj=lambda gate: gate * 1e32)))
    write_graph(huge, tmp_path, Form.named("dq8r", form))
    with pytest.raises(ParityError, match=r"gate_proj\.weight may leave float32"):
        prove(tmp_path, huge, Form.named("dq8r", form), rows())


def with_attribute(node: onnx.NodeProto, name: str, value: int) -> None:
    kept = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def smallest(nodes: dict[str, onnx.NodeProto]) -> None:
    with_attribute(nodes["TopK"], "largest", 0)


def over_the_tokens(nodes: dict[str, onnx.NodeProto]) -> None:
    with_attribute(nodes["LogSoftmax"], "axis", 0)


def of_the_shares(nodes: dict[str, onnx.NodeProto]) -> None:
    nodes["Gather"].input[0] = nodes["LogSoftmax"].output[0]


@pytest.mark.parametrize("form", [("fp32", "decomposed"), ("dq8r", "int8"), ("fp16", "paged")])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (smallest, "chooses another token"),
        (over_the_tokens, "another log-probability"),
        (of_the_shares, "the candidates other logits"),
    ],
)
def test_a_graph_that_chooses_wrongly_is_refused(
    change: Callable[[dict[str, onnx.NodeProto]], None], sentence: str, form: tuple[str, str], tmp_path: Path
) -> None:
    """A Gen graph brings no logits back: what it says of them is checked against them. The last node of each operator
    is the one that chooses."""
    export_broken(tmp_path, {}, *form)
    model = onnx.load(tmp_path / GRAPH, load_external_data=False)
    change({node.op_type: node for node in model.graph.node})
    (tmp_path / GRAPH).write_bytes(model.SerializeToString())
    with pytest.raises(ParityError, match=sentence):
        prove(tmp_path, demo("gen"), Form.named(*form), rows())
