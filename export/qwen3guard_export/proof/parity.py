"""Proves an export: compares the graph in ONNX Runtime with its own arithmetic in numpy, half a layer at a time.

The rows of `texts` go through the graph in every way in which the server uses it: in one pass, in pieces over the KV
cache, token by token, and as a ragged batch in slots with another sequence's leftovers. For each half of each layer,
`arithmetic` then starts from what the graph itself had before it, and both must add the same. So rounding does not
accumulate over the layers, and the bounds are tight for any weights. The error of the format against float32 is
measured too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from qwen3guard_contract.answer_end import end_ids
from qwen3guard_contract.errors import ParityError
from qwen3guard_contract.forms import Form
from qwen3guard_contract.manifest import GEN_CHOICES, GEN_OUTPUTS, GRAPH, Canary
from qwen3guard_contract.slots import CELL_STEP, whole_blocks

from qwen3guard_export.checkpoint.checkpoint import EMBEDDING, Architecture, Checkpoint
from qwen3guard_export.checkpoint.tokenizer_files import im_end_id
from qwen3guard_export.checkpoint.weight_files import FloatArray
from qwen3guard_export.graph.graph import EMBEDDED, ROTATIONS, after_attention, after_feed_forward
from qwen3guard_export.proof.arithmetic import Arithmetic, Scores, rotations
from qwen3guard_export.proof.bound_graph import ASKED_CANDIDATES, BoundGraph, GraphOutputs, RowChunk
from qwen3guard_export.proof.canary import canary, longest
from qwen3guard_export.proof.reference import Tokens, reference_logits
from qwen3guard_export.proof.texts import around_text
from qwen3guard_export.proof.traces import Trace, traced_runs

FP32_BOUND = 1e-4
"""The bound on the error of a whole model in float32, as a part of the logits' scale, max |reference|; with room."""


@dataclass(frozen=True)
class Bounds:
    """Bounds on the relative error of a token, `worst`, and on its mean over the tokens, `mean`.

    The error of half a layer is |added - expected| / |expected| of what it adds to the residual stream, and likewise of
    each vector of keys and values in the cells. That of logits is a part of the token's largest. What float32 rounds
    off where a long vector is added to, or multiplied, is no error.
    """

    worst: float
    mean: float


BOUNDS = {
    "fp32": Bounds(2e-5, 2e-6),
    "fp16": Bounds(1e-2, 2e-3),
    "bf16": Bounds(1e-2, 4e-3),
    "dq8r": Bounds(5e-2, 6e-3),
}
"""docs/performance.md has the measurements that set them."""
_RESIDUAL_ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8}
_FLOAT32_ROUNDING = 2.0**-22
"""The share of the residual stream that is lost when an update is added to it and subtracted again here: where the
stream has two bytes, by its type. And that of two vectors' lengths that is lost when they are multiplied."""
_BALANCE_TOKENS = 32
_TABLE_ROWS = 1 << 14
_ROTATION_BOUND = 0.01
"""The bound on the error of a cosine or sine. An angle in float32 is off by some 6e-8 of itself, and there are tens of
thousands of positions."""
_LOGPROB_BOUND = 1e-4
_MOST_LOGITS = 1 << 25
"""The most logits that are compared, which bounds the memory: with a large vocabulary, those of the last tokens."""


@dataclass(frozen=True)
class Proof:
    """The canary, and the figures of the proof by name:

    layer_worst, layer_mean   the largest of the errors that BOUNDS bound
    fp32_max, fp32_mean       the error of the logits against the checkpoint in float32, as a part of their scale; it is
                              the cost of the format, reported and not bounded
    batch_bit_identical       1.0 if rows alone give the same bits as in a batch, else 0.0
    half_largest              the largest absolute number of two bytes, where there are such numbers
    """

    figures: dict[str, float]
    canary: Canary


def prove(
    folder: Path,
    checkpoint: Checkpoint,
    form: Form,
    rows: Sequence[Tokens],
    *,
    original: Checkpoint | None = None,
) -> Proof:
    """Runs the graph in `folder` on `rows`, and compares it with `checkpoint`, from which it was written.

    `original` is the checkpoint before it was balanced, if it was. Raises ParityError where half a layer is beyond
    BOUNDS, where a row depends on the rows beside it in a form that promises equal bits, where a longer slot changes
    the outputs, where an embedding or a rotation is wrong, or where the balanced checkpoint computes something else.
    """
    architecture = checkpoint.architecture
    asked = [max(0, len(row) - _MOST_LOGITS // architecture.vocab // len(rows)) for row in rows]
    around = around_text(checkpoint.folder)
    capacity = whole_blocks(max(longest(around), *map(len, rows)))
    bind = partial(BoundGraph, folder, architecture, form)
    ends = end_ids(checkpoint.folder, im_end_id(checkpoint.folder))
    try:
        traces, identical = traced_runs(partial(bind, capacity=capacity), architecture.layers, rows, asked)
        served = bind(
            slots=1, capacity=2 * capacity + CELL_STEP, choices=True
        )  # the length of a slot must change nothing
        unwatched = served.run([RowChunk(0, 0, rows[0], asked[0])])[0]
        recorded = canary(served, architecture, form.coarsest, around, ends)
    except Exception as error:  # ONNX Runtime's errors have no other common base
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ParityError(f"ONNX Runtime cannot run the exported graph: {reason}") from error
    for name in unwatched.keys() - set(GEN_CHOICES):
        values = unwatched[name]
        if not np.abs(values - traces[0].outputs[name]).max() <= BOUNDS[form.coarsest].worst * np.abs(values).max():
            raise ParityError(f"the {name.replace('_', ' ')} are others in a longer slot, where no layer is watched.")
    if served.has_choices:
        _check_choices(unwatched)
    arithmetic = Arithmetic(checkpoint, form)
    figures = _check_layers(arithmetic, architecture, traces, form)
    if form.promises_equal_bits and not identical:
        raise ParityError(f"a row of the {form.weights} graph depends on the rows it is batched with.")
    figures["batch_bit_identical"] = float(identical)
    _check_tables(folder, checkpoint, arithmetic)
    if arithmetic.largest_half:
        figures["half_largest"] = arithmetic.largest_half
    figures |= _distance(original or checkpoint, traces[: len(rows)])
    if original is not None and original is not checkpoint:
        _check_balance(original, checkpoint, rows[0][:_BALANCE_TOKENS])
    return Proof(figures, recorded)


def _check_choices(outputs: GraphOutputs) -> None:
    """Raises ParityError where what the graph chooses is not the likeliest token, or has other logits than it."""
    (choices, candidates), logits = (outputs[name] for name in GEN_CHOICES), outputs[GEN_OUTPUTS[0]]
    tokens, largest, logprobs = choices.T
    if not (np.array_equal(tokens, logits.argmax(axis=1)) and np.array_equal(largest, logits.max(axis=1))):
        raise ParityError("the graph chooses another token than the likeliest, or gives it another logit.")
    expected = -np.log(np.exp(logits.astype(np.float64) - largest[:, None]).sum(axis=1))
    if not np.abs(logprobs - expected).max() <= _LOGPROB_BOUND:
        raise ParityError("the graph gives the likeliest token another log-probability.")
    if not np.array_equal(candidates, logits[:, ASKED_CANDIDATES]):
        raise ParityError("the graph gives the candidates other logits.")


def _check_layers(
    arithmetic: Arithmetic, architecture: Architecture, traces: Sequence[Trace], form: Form
) -> dict[str, float]:
    """Checks each half of each layer, and the heads. Raises ParityError at the first that is beyond BOUNDS."""
    worst = mean = 0.0
    bounds = BOUNDS[form.coarsest]
    lost = _RESIDUAL_ROUNDING[form.weights] if form.has_half_residual else _FLOAT32_ROUNDING
    for part, distances in _distances(arithmetic, architecture, traces, lost):
        largest, average = float(distances.max(initial=0)), float(distances.mean())
        if not (largest <= bounds.worst and average <= bounds.mean):
            raise ParityError(
                f"the graph computes another {part} than the checkpoint: off by {largest:.1e} at a token and"
                f" {average:.1e} on average, where {bounds.worst:.0e} and {bounds.mean:.0e} are allowed."
            )
        worst, mean = max(worst, largest), max(mean, average)
    return {"layer_worst": worst, "layer_mean": mean}


def _distances(
    arithmetic: Arithmetic, architecture: Architecture, traces: Sequence[Trace], lost: float
) -> Iterator[tuple[str, FloatArray]]:
    """Yields each part of the graph, by name, with its relative errors in all traces together."""
    before = [trace.outputs[EMBEDDED] for trace in traces]
    expected = [arithmetic.embedded(trace.tokens) for trace in traces]
    yield "embedding", np.concatenate([_relative(*pair) for pair in zip(before, expected, strict=True)])
    for layer in range(architecture.layers):
        attended = arithmetic.attention(layer, before)
        for number, name in enumerate(("keys", "values")):
            errors = [
                _relative(trace.cells[layer][number], (result.keys, result.values)[number])
                for trace, result in zip(traces, attended, strict=True)
                if trace.cells
            ]
            yield f"{name} of layer {layer}", np.concatenate([error.ravel() for error in errors])
        last = layer == architecture.layers - 1
        first = [trace.asked if last else 0 for trace in traces]
        before = [state[begin:] for state, begin in zip(before, first, strict=True)]
        updates = [result.update[begin:] for result, begin in zip(attended, first, strict=True)]
        between = [trace.outputs[after_attention(layer)] for trace in traces]
        yield f"attention of layer {layer}", _off(before, updates, between, lost)
        lengths = np.cumsum([len(state) for state in between])[:-1]
        fed = np.split(arithmetic.feed_forward(layer, np.concatenate(between)), lengths)
        before = [trace.outputs[after_feed_forward(layer)] for trace in traces]
        yield f"feed-forward of layer {layer}", _off(between, fed, before, lost)
    lengths = np.cumsum([len(state) for state in before])[:-1]
    for name, scores in arithmetic.logits(np.concatenate(before)).items():
        outputs = np.concatenate([trace.outputs[name] for trace in traces])
        yield name.replace("_", " "), _off_scores(outputs, scores)


def _off(
    before: Sequence[FloatArray], updates: Sequence[FloatArray], after: Sequence[FloatArray], lost: float
) -> FloatArray:
    """|after - before - update| / |update| of each token, less the share `lost` of the state that rounding may take."""
    state, update, following = (np.concatenate(each).astype(np.float64) for each in (before, updates, after))
    error = np.linalg.norm(following - state - update, axis=1) - lost * np.linalg.norm(state, axis=1)
    off: FloatArray = np.maximum(error, 0) / np.maximum(np.linalg.norm(update, axis=1), 1e-30)
    return np.where(np.isfinite(off), off, np.inf)


def _off_scores(outputs: FloatArray, scores: Scores) -> FloatArray:
    """The largest |output - value| of each token, as a part of its largest value, less what float32 may round off."""
    error = np.abs(outputs - scores.values)
    error -= _FLOAT32_ROUNDING * np.outer(scores.vector_lengths, scores.row_lengths)
    off: FloatArray = np.maximum(error, 0).max(axis=1) / np.abs(scores.values).max(axis=1)
    return np.where(np.isfinite(off), off, np.inf)


def _relative(found: FloatArray, expected: FloatArray) -> FloatArray:
    """|found - expected| / |expected| of each vector [..., n]."""
    lengths = np.linalg.norm(expected, axis=-1)
    off: FloatArray = np.linalg.norm(found - expected, axis=-1) / np.maximum(lengths, 1e-30)
    return np.where(np.isfinite(off), off, np.inf)


def _distance(checkpoint: Checkpoint, traces: Sequence[Trace]) -> dict[str, float]:
    """The error of the logits against the checkpoint in float32, as a part of their scale."""
    expected = reference_logits(checkpoint, [trace.tokens for trace in traces], [trace.asked for trace in traces])
    off = [
        np.abs(trace.outputs[name] - values) / np.abs(values).max()
        for trace, wanted in zip(traces, expected, strict=True)
        for name, values in wanted.items()
    ]
    return {"fp32_max": max(float(each.max()) for each in off), "fp32_mean": max(float(each.mean()) for each in off)}


def _check_tables(folder: Path, checkpoint: Checkpoint, arithmetic: Arithmetic) -> None:
    """Checks the embeddings of all tokens and the rotations of all positions; the proof's rows reach only some of them.

    Raises ParityError.
    """
    graph = onnx.load(folder / GRAPH, load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.name in (EMBEDDING, *ROTATIONS)}
    architecture = checkpoint.architecture
    table = onnx.numpy_helper.to_array(stored[EMBEDDING], base_dir=str(folder))
    for start in range(0, architecture.vocab, _TABLE_ROWS):
        ids = np.arange(start, min(start + _TABLE_ROWS, architecture.vocab))
        if not np.array_equal(table[ids].astype(np.float32), arithmetic.embedded(ids)):
            raise ParityError(f"the embedding of a token from {start} on is another than the checkpoint's.")
    del table
    positions = np.arange(architecture.context, dtype=np.float32)
    for name, expected in zip(ROTATIONS, rotations(architecture, positions), strict=True):
        table = onnx.numpy_helper.to_array(stored[name], base_dir=str(folder))
        off = np.abs(table - expected).max(axis=1) if table.shape == expected.shape else np.array([np.inf])
        if not off.max() <= _ROTATION_BOUND:
            raise ParityError(f"the rotation of position {int(off.argmax())} is off by {off.max():.1e}.")


def _check_balance(original: Checkpoint, balanced: Checkpoint, row: Tokens) -> None:
    """Raises ParityError unless both compute the same in float32."""
    (expected,), (logits,) = reference_logits(original, [row]), reference_logits(balanced, [row])
    off = max(float(np.abs(logits[name] - values).max() / np.abs(values).max()) for name, values in expected.items())
    if not off <= FP32_BOUND:
        raise ParityError(
            f"the balanced checkpoint differs from the one it came from by {off:.1e} of the logits' scale."
        )
