"""Balancing: the same function to the bit, and eight bits that outliers cost nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import outliers
import pytest
from outliers import Conversation, Difference, derive, judge
from qwen3guard_contract.forms import Form
from qwen3guard_contract.manifest import GRAPH
from qwen3guard_export.balance.balance import BalancedWeights, balance, factors
from qwen3guard_export.balance.channel_sizes import channel_sizes
from qwen3guard_export.checkpoint.checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    Checkpoint,
    block_tensor,
    open_checkpoint,
)
from qwen3guard_export.graph.write import write_graph
from qwen3guard_export.proof.reference import final_states, reference_logits
from support.random_checkpoint import make

SHAPES: dict[str, dict[str, Any]] = {
    "gen GQA, tied": {"variant": "gen", "heads": 8, "kv_heads": 2},
    "gen MHA, untied, sharded": {"variant": "gen", "heads": 4, "kv_heads": 4, "tied": False, "shards": 3},
    "gen odd, fp16": {
        "variant": "gen", "hidden": 37, "layers": 1, "heads": 3, "kv_heads": 1, "head_dim": 10, "ffn": 53,
        "dtype": "fp16",
    },
    "stream GQA": {"variant": "stream", "heads": 6, "kv_heads": 3, "layers": 3},
    "stream MHA, odd, fp32": {
        "variant": "stream", "hidden": 45, "heads": 3, "kv_heads": 3, "head_dim": 14, "ffn": 61, "dtype": "fp32",
    },
}  # fmt: skip
START = 1
KINDS = outliers.kinds(START)
MOVED = [name for name in KINDS if name != "none" and not name.startswith("first token")]
BOUND = 1.2
"""Of the mean error of eight bits without outliers."""
MEMORY_OF_BALANCE = """
import sys, tracemalloc
import numpy as np
from qwen3guard_export.balance.balance import balance
from qwen3guard_export.checkpoint.checkpoint import open_checkpoint
checkpoint, rows = open_checkpoint(sys.argv[1]), list(np.load(sys.argv[2]))
tracemalloc.start()
kept_alive = balance(checkpoint, rows, weights=True, kv=True)
print(*tracemalloc.get_traced_memory())
"""
"""Prints the bytes that are kept after a balance, and the most meanwhile: in a process of its own, because tracemalloc
counts what all threads take."""


def token_rows(count: int, length: int, seed: int = 0) -> list[np.ndarray]:
    """Random ids behind the token that every conversation begins with."""
    random = np.random.default_rng(seed)
    return [np.concatenate([[START], random.integers(5, 250, length)]) for _ in range(count)]


def error(exact: Checkpoint, found: Checkpoint, weights: str = "dq8r") -> float:
    """The mean error of a probability in `weights`, with int8 KV for Stream, from `exact` in fp32."""
    stream = exact.architecture.variant == "stream"
    ids = token_rows(12, 50, seed=1)
    conversations = [Conversation(each, range(2, len(each)), len(each) - 1) for each in ids]
    form = Form.named(weights, "int8" if stream else "decomposed")
    answers = [
        judge(checkpoint, kind, conversations, severities=[7, 8, 9])
        for checkpoint, kind in ((exact, Form("fp32", "decomposed")), (found, form))
    ]
    return Difference.of(*answers).mean


def balanced(checkpoint: Checkpoint, *, weights: bool = True, kv: bool = True) -> Checkpoint:
    return balance(checkpoint, token_rows(8, 40), weights=weights, kv=kv)


def final_norm(tensors: dict[str, np.ndarray], *_: object) -> None:
    """An outlier between the final norm and an lm_head of its own."""
    tensors[FINAL_NORM][[5, 50]] *= 30
    tensors[LM_HEAD][:, [5, 50]] /= 30


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """A Stream and a Gen without outliers."""
    folder = tmp_path_factory.mktemp("plain")
    shape: dict[str, Any] = {
        "hidden": 128,
        "layers": 3,
        "heads": 8,
        "kv_heads": 4,
        "head_dim": 32,
        "ffn": 256,
        "tied": False,
    }
    return {name: open_checkpoint(str(make(folder / name, name, **shape))) for name in ("stream", "gen")}


@pytest.fixture(scope="module")
def usual(plain: dict[str, Checkpoint]) -> dict[str, float]:
    return {name: error(checkpoint, checkpoint) for name, checkpoint in plain.items()}


@pytest.mark.parametrize(("weights", "kv"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_function_is_the_same_to_the_bit(tmp_path: Path, shape: str, weights: bool, kv: bool) -> None:
    checkpoint = open_checkpoint(str(make(tmp_path, **SHAPES[shape])))
    checkpoint = derive(checkpoint, tmp_path / "derived", KINDS["all together"])
    other = balance(checkpoint, token_rows(3, 20), weights=weights, kv=kv)
    rows = token_rows(2, 30, seed=2)
    for before, after in zip(reference_logits(checkpoint, rows), reference_logits(other, rows), strict=True):
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
    assert isinstance(other.weights, BalancedWeights)
    changed = {*other.weights.row_factors, *other.weights.column_factors}
    assert (block_tensor(0, "self_attn.k_norm") in changed) == kv
    assert (block_tensor(0, "mlp.down_proj") in changed) == weights
    for each in (*other.weights.row_factors.values(), *other.weights.column_factors.values()):
        assert (np.frexp(each)[0] == 0.5).all()  # a power of two


@pytest.mark.parametrize("kind", MOVED)
def test_an_outlier_costs_nothing_once_it_is_balanced(
    tmp_path: Path, plain: dict[str, Checkpoint], usual: dict[str, float], kind: str
) -> None:
    checkpoint = derive(plain["stream"], tmp_path, KINDS[kind])
    assert error(checkpoint, checkpoint) > 2 * usual["stream"]
    assert error(checkpoint, balanced(checkpoint)) < BOUND * usual["stream"]


@pytest.mark.parametrize("kind", ["k pair x 40", "v x 20"])
def test_so_it_does_in_keys_and_values_alone(tmp_path: Path, plain: dict[str, Checkpoint], kind: str) -> None:
    checkpoint = derive(plain["stream"], tmp_path, KINDS[kind])
    usual = error(plain["stream"], plain["stream"], "fp32")
    assert error(checkpoint, checkpoint, "fp32") > 2 * usual
    assert error(checkpoint, balanced(checkpoint, weights=False), "fp32") < BOUND * usual


@pytest.mark.parametrize("change", [final_norm, *KINDS["down x 100"], *KINDS["norms x 30"]])
def test_and_so_in_gen(
    tmp_path: Path, plain: dict[str, Checkpoint], usual: dict[str, float], change: outliers.Change
) -> None:
    checkpoint = derive(plain["gen"], tmp_path, [change])
    assert error(checkpoint, checkpoint) > 1.5 * usual["gen"]
    assert error(checkpoint, balanced(checkpoint, kv=False)) < BOUND * usual["gen"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("first token")])
def test_a_massive_first_token_does_not_misguide_the_balance(
    tmp_path: Path, plain: dict[str, Checkpoint], usual: dict[str, float], kind: str
) -> None:
    """A token's row has a scale of its own, so without a balance it is no worse either."""
    checkpoint = derive(plain["stream"], tmp_path, KINDS[kind])
    assert error(checkpoint, balanced(checkpoint)) < BOUND * usual["stream"]


@pytest.mark.parametrize("variant", ["stream", "gen"])
def test_without_outliers_nothing_is_lost(plain: dict[str, Checkpoint], usual: dict[str, float], variant: str) -> None:
    checkpoint = plain[variant]
    assert error(checkpoint, balanced(checkpoint, kv=variant == "stream")) < 1.1 * usual[variant]


def test_a_few_tokens_are_enough_to_go_by(
    tmp_path: Path, plain: dict[str, Checkpoint], usual: dict[str, float]
) -> None:
    checkpoint = derive(plain["stream"], tmp_path, KINDS["all together"])
    few = balance(checkpoint, token_rows(1, 7), weights=True, kv=True)
    assert error(checkpoint, few) < 1.5 * usual["stream"]


def test_it_costs_nothing_when_serving(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make(tmp_path / "checkpoint", "gen", vocab=3000)))
    assert checkpoint.architecture.tied
    sizes, operators = [], []
    for name, each in (("before", checkpoint), ("after", balanced(checkpoint))):
        (folder := tmp_path / name).mkdir()
        write_graph(each, folder, Form("dq8r", "decomposed"))
        sizes.append((folder / f"{GRAPH}.data").stat().st_size)
        nodes = onnx.load(folder / GRAPH, load_external_data=False).graph.node
        operators.append([node.op_type for node in nodes])
    assert operators[0] == operators[1]
    assert sizes[0] == sizes[1]


def test_one_matrix_is_in_memory_at_a_time(tmp_path: Path) -> None:
    folder = make(tmp_path, "gen", hidden=256, layers=8, heads=8, kv_heads=4, head_dim=32, ffn=1024, vocab=2000)
    matrix = 4 * 1024 * 256  # bytes of the largest but the table; the checkpoint has 24 of them
    np.save(tmp_path / "rows.npy", token_rows(2, 20))
    command = [sys.executable, "-c", MEMORY_OF_BALANCE, str(folder), str(tmp_path / "rows.npy")]
    kept, peak = map(int, subprocess.run(command, check=True, capture_output=True).stdout.split())
    assert peak < 6 * matrix
    assert kept < matrix / 2
    other = balance(open_checkpoint(str(folder)), token_rows(2, 20), weights=True, kv=True)
    name = block_tensor(3, "mlp.up_proj")
    first = other.weights.float32(name)
    first[...] = 0
    assert other.weights.float32(name).any()  # each reading is an array of its own


def test_the_embedding_is_left_as_it_is_stored(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(make(tmp_path, "gen")))
    other = balanced(checkpoint)
    assert not other.architecture.tied
    assert other.weights.stored(EMBEDDING).dtype == checkpoint.weights.stored(EMBEDDING).dtype
    np.testing.assert_array_equal(other.weights.stored(EMBEDDING), checkpoint.weights.stored(EMBEDDING))
    assert isinstance(other.weights, BalancedWeights)
    np.testing.assert_array_equal(
        other.weights.float32(LM_HEAD), checkpoint.weights.float32(EMBEDDING) * other.weights.column_factors[LM_HEAD]
    )
    assert other.weights.stored(LM_HEAD).dtype == np.float32
    assert other.weights.shape(LM_HEAD) == checkpoint.weights.shape(EMBEDDING)


def test_balanced_twice(tmp_path: Path, plain: dict[str, Checkpoint], usual: dict[str, float]) -> None:
    checkpoint = derive(plain["stream"], tmp_path, KINDS["all together"])
    twice = balanced(balanced(checkpoint))
    assert error(checkpoint, twice) < BOUND * usual["stream"]


def test_channels_that_nothing_goes_through(tmp_path: Path, plain: dict[str, Checkpoint]) -> None:
    """A norm weight, a row and a column of zeros, and numbers near the end of float32, leave finite factors."""

    def emptied(tensors: dict[str, np.ndarray], *_: object) -> None:
        tensors[block_tensor(0, "input_layernorm")][:3] = 0
        tensors[block_tensor(0, "mlp.up_proj")][:5] = 0
        tensors[block_tensor(0, "mlp.down_proj")][:, 3:9] = 0
        tensors[block_tensor(1, "self_attn.k_norm")][:] = 0
        tensors[block_tensor(1, "self_attn.v_proj")][:] = 0
        tensors[block_tensor(2, "mlp.up_proj")][0] *= 1e-30
        tensors[block_tensor(2, "mlp.up_proj")][1] *= 1e15

    checkpoint = derive(plain["stream"], tmp_path, [emptied])
    other = balanced(checkpoint)
    for name in other.weights.tensors:
        assert np.isfinite(other.weights.float32(name)).all(), name
    rows = token_rows(1, 10)
    for name, values in reference_logits(other, rows)[0].items():
        np.testing.assert_array_equal(values, reference_logits(checkpoint, rows)[0][name])


def test_a_channel_that_a_few_texts_hardly_excite_is_not_made_large(
    tmp_path: Path, plain: dict[str, Checkpoint]
) -> None:
    """Another text may excite it, and would then meet an outlier that the balance made."""

    def silenced(tensors: dict[str, np.ndarray], *_: object) -> None:
        tensors[block_tensor(0, "mlp.gate_proj")][:4] *= 1e-4

    other = balanced(derive(plain["stream"], tmp_path, [silenced]))
    assert isinstance(other.weights, BalancedWeights)
    assert other.weights.row_factors[block_tensor(0, "mlp.up_proj")][:4].max() <= 4


def test_nothing_to_do_and_nothing_to_go_by(plain: dict[str, Checkpoint]) -> None:
    checkpoint = plain["stream"]
    assert balance(checkpoint, [], weights=False, kv=False) is checkpoint
    with pytest.raises(ValueError, match="at least one text"):
        balance(checkpoint, [], weights=True, kv=True)


def test_factors_are_smoothquants() -> None:
    """Equation 4 with alpha = 1/2, relative to the median, in powers of two; 1 below eight times."""
    activations = np.array([1, 1, 1, 100, 1, 0, 5, 16], np.float32)
    weights = np.array([1, 1, 1, 1, 64, 1, 0, 1], np.float32)
    np.testing.assert_array_equal(factors(activations, weights), [1, 1, 1, 8, 1 / 8, 1, 1, 1])
    np.testing.assert_array_equal(factors(np.zeros(3, np.float32), np.ones(3, np.float32)), [1, 1, 1])


def test_channel_sizes_are_those_of_the_reference(plain: dict[str, Checkpoint]) -> None:
    """Its last state, through the heads, gives the reference's: so every state before it was right."""
    checkpoint, rows = plain["stream"], token_rows(3, 15)
    _, final = channel_sizes(checkpoint, rows)
    expected = np.concatenate(final_states(checkpoint, rows))
    np.testing.assert_allclose(final, np.sqrt((expected * expected).mean(axis=0)), rtol=1e-4)
