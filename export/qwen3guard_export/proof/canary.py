"""The canary of an exported graph: a short input whose answer moves when a product goes wrong, and not for less."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from qwen3guard_contract.manifest import GEN_OUTPUTS, STREAM_OUTPUTS, Canary

from qwen3guard_export.checkpoint.checkpoint import Architecture
from qwen3guard_export.checkpoint.weight_files import FloatArray
from qwen3guard_export.proof.bound_graph import BoundGraph, GraphOutputs, RowChunk
from qwen3guard_export.proof.reference import Tokens

TOKENS = 40
"""Random ones: of an ordinary text a trained guard is so sure that its probabilities hardly move."""
LENGTHS = (8, 16, 24, TOKENS)
CANDIDATES = 12
"""Of Gen's canary without a template, by LENGTHS in turn; and one of each length within it."""
VALUES = 8
"""Of an answer's tokens, at most."""
LONGEST_ANSWER = 12
"""A canary's answer is to end within as many, since it is asked for every few seconds."""
MARGIN = 0.1
"""Of Gen's answer: how far the second most likely token is behind, as a difference of log-probabilities."""
_SURE = 0.01
"""A log-probability that is nearer to 0 hardly moves; the tolerance, which is on the mean, allows for those that do."""
TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "dq8r": 5e-3}
"""For Gen's log-probabilities; a tenth for Stream's probabilities (docs/performance.md has what set them)."""


def canary(
    graph: BoundGraph,
    architecture: Architecture,
    numbers: str,
    around: tuple[Tokens, Tokens],
    ends: Collection[int],
) -> Canary:
    """`graph` needs one slot of `longest(around)` cells; `around` is what the template writes about a text, `ends`
    are the ids that end an answer, and `numbers` is the key of TOLERANCES that is the coarsest in the graph.

    Of what makes Gen answer briefly, the canary is that of whose answer it is least sure: random tokens alone, if some
    do, or else within the template, where a trained guard is brief.
    """
    if architecture.variant == "stream":
        row = _random(architecture, 0, min(TOKENS, architecture.context))
        return Canary(
            tuple(map(int, row)), stream_values(graph.run([RowChunk(0, 0, row)])[0]), TOLERANCES[numbers] / 10
        )
    before, behind = around
    rows = [_random(architecture, seed, LENGTHS[seed % len(LENGTHS)]) for seed in range(CANDIDATES)]
    rows += [np.concatenate([before, row, behind]) for row in rows[: len(LENGTHS)]]
    room = max(1, architecture.context - LONGEST_ANSWER)
    answers = [(row, _answer(graph, row, ends)) for row in (row[:room] for row in rows)]
    row, best = min(answers, key=lambda each: (not each[1].ends, sum(each[1].settled)))
    unsure = sum(value < -_SURE for value in best.settled)
    return Canary(tuple(map(int, row)), best.settled, TOLERANCES[numbers] * max(1, unsure) / len(best.settled))


def _random(architecture: Architecture, seed: int, tokens: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, architecture.vocab, tokens)


def longest(around: tuple[Tokens, Tokens]) -> int:
    """Cells that a canary takes, with its answer."""
    return sum(map(len, around)) + TOKENS + LONGEST_ANSWER


def stream_values(outputs: GraphOutputs) -> tuple[float, ...]:
    """What `Canary.values` records of Stream's outputs [tokens, n]."""
    risk, category = (np.exp(_log_softmax(outputs[name])) for name in STREAM_OUTPUTS[:2])
    return tuple(round(float(share), 7) for share in (*risk.ravel(), *category.ravel()))


@dataclass(frozen=True)
class _Answer:
    """The log-probabilities of up to VALUES first tokens, none behind a choice by less than MARGIN; and whether the
    answer ends within LONGEST_ANSWER."""

    settled: tuple[float, ...]
    ends: bool


def _answer(graph: BoundGraph, row: Tokens, ends: Collection[int]) -> _Answer:
    """What greedy decoding appends to `row`."""
    logprobs: list[float] = []
    close = VALUES
    ids, position = row, 0
    while len(logprobs) < LONGEST_ANSWER:
        found = _log_softmax(graph.run([RowChunk(0, position, ids, len(ids) - 1)])[0][GEN_OUTPUTS[0]])[0]
        second, first = np.partition(found, -2)[-2:]
        logprobs.append(float(first))
        if first - second < MARGIN:
            close = min(close, len(logprobs))
        token = int(found.argmax())
        if token in ends:
            return _Answer(tuple(logprobs[:close]), ends=True)
        position += len(ids)
        ids = np.array([token], np.int64)
    return _Answer(tuple(logprobs[:close]), ends=False)


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
