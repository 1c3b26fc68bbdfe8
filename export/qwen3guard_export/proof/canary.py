"""Makes the canary of an exported graph: a short input whose answer changes if, and only if, products are wrong."""

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
"""The most random tokens of a canary. They are random because a trained guard is so sure of an ordinary text that its
probabilities hardly change."""
LENGTHS = (8, 16, 24, TOKENS)
CANDIDATES = 12
"""The number of candidates for Gen's canary without a template, with LENGTHS in turn. One candidate of each length
within the template is added."""
VALUES = 8
"""The most tokens of an answer whose log-probabilities a canary keeps."""
LONGEST_ANSWER = 12
"""The most tokens that a canary's answer should have, since it is asked for every few seconds."""
MARGIN = 0.1
"""The least lead of a chosen token over the second one in Gen's answer, as a difference of log-probabilities."""
_SURE = 0.01
"""A log-probability nearer to 0 than this hardly changes. The tolerance is on the mean, so it is scaled by the share of
the others."""
TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "dq8r": 5e-3}
"""The tolerances of Gen's log-probabilities; a tenth of them for Stream's probabilities. docs/performance.md has the
measurements behind them."""


def canary(
    graph: BoundGraph,
    architecture: Architecture,
    numbers: str,
    around: tuple[Tokens, Tokens],
    ends: Collection[int],
) -> Canary:
    """The canary of `graph`, which needs one slot of `longest(around)` cells.

    `around` are the template's tokens before and after a text, `ends` the ids that end an answer, and `numbers` is the
    coarsest number format in the graph, a key of TOLERANCES. Gen's canary is the candidate with the least certain
    answer among those whose answer ends within LONGEST_ANSWER tokens. A trained guard answers briefly within its
    template.
    """
    if architecture.variant == "stream":
        row = _random(architecture, 0, min(TOKENS, architecture.context))
        return Canary(
            tuple(map(int, row)), stream_values(graph.run([RowChunk(0, 0, row)])[0]), TOLERANCES[numbers] / 10
        )
    before, after = around
    rows = [_random(architecture, seed, LENGTHS[seed % len(LENGTHS)]) for seed in range(CANDIDATES)]
    rows += [np.concatenate([before, row, after]) for row in rows[: len(LENGTHS)]]
    room = max(1, architecture.context - LONGEST_ANSWER)
    answers = [(row, _answer(graph, row, ends)) for row in (row[:room] for row in rows)]
    row, best = min(answers, key=lambda pair: (not pair[1].ends, sum(pair[1].settled)))
    unsure = sum(value < -_SURE for value in best.settled)
    return Canary(tuple(map(int, row)), best.settled, TOLERANCES[numbers] * max(1, unsure) / len(best.settled))


def _random(architecture: Architecture, seed: int, tokens: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, architecture.vocab, tokens)


def longest(around: tuple[Tokens, Tokens]) -> int:
    """The most cells that a canary and its answer take."""
    return sum(map(len, around)) + TOKENS + LONGEST_ANSWER


def stream_values(outputs: GraphOutputs) -> tuple[float, ...]:
    """The values of Stream's canary from its outputs [tokens, n]: the probabilities of risk and category."""
    risk, category = (np.exp(_log_softmax(outputs[name])) for name in STREAM_OUTPUTS[:2])
    return tuple(round(float(share), 7) for share in (*risk.ravel(), *category.ravel()))


@dataclass(frozen=True)
class _Answer:
    """The log-probabilities of the answer's first tokens, and whether the answer ends within LONGEST_ANSWER tokens.

    `settled` has up to VALUES tokens. It ends with the first token that leads by less than MARGIN, because after that
    another token might be chosen.
    """

    settled: tuple[float, ...]
    ends: bool


def _answer(graph: BoundGraph, row: Tokens, ends: Collection[int]) -> _Answer:
    """The greedy answer to `row`."""
    logprobs: list[float] = []
    close = VALUES
    ids, position = row, 0
    while len(logprobs) < LONGEST_ANSWER:
        choices = _log_softmax(graph.run([RowChunk(0, position, ids, len(ids) - 1)])[0][GEN_OUTPUTS[0]])[0]
        second, first = np.partition(choices, -2)[-2:]
        logprobs.append(float(first))
        if first - second < MARGIN:
            close = min(close, len(logprobs))
        token = int(choices.argmax())
        if token in ends:
            return _Answer(tuple(logprobs[:close]), ends=True)
        position += len(ids)
        ids = np.array([token], np.int64)
    return _Answer(tuple(logprobs[:close]), ends=False)


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    logprobs: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logprobs
