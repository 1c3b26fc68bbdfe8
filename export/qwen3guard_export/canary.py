"""The canary of an exported graph: a short input whose answer moves when a product goes wrong, and not for less."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from qwen3guard_client.manifest import GEN_OUTPUTS, STREAM_OUTPUTS, Canary

from qwen3guard_export.bound_graph import BoundGraph, Chunk, Outputs
from qwen3guard_export.checkpoint import Architecture
from qwen3guard_export.reference import Tokens
from qwen3guard_export.weight_files import FloatArray

TOKENS = 40
"""Random ones: a trained guard is so sure of its own template that its probabilities there hardly move."""
ANSWER_TOKENS = 8
CANDIDATES = 8
MARGIN = 0.1
"""Of Gen's answer: how far the second most likely token is behind, as a difference of log-probabilities."""
TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "dq8r": 5e-3}
"""For Gen's log-probabilities; a tenth for Stream's probabilities (docs/performance.md has what set them)."""


def canary(graph: BoundGraph, architecture: Architecture, numbers: str, special: Collection[int]) -> Canary:
    """`graph` needs one slot of TOKENS and ANSWER_TOKENS; `special` are the ids that may end an answer, and `numbers`
    is the key of TOLERANCES that is the coarsest in the graph."""
    tokens = min(TOKENS, max(1, architecture.context - ANSWER_TOKENS))
    rows = [np.random.default_rng(seed).integers(0, architecture.vocab, tokens) for seed in range(CANDIDATES)]
    if architecture.variant == "stream":
        outputs = graph.run([Chunk(0, 0, rows[0])])[0]
        return Canary(tuple(map(int, rows[0])), stream_values(outputs), TOLERANCES[numbers] / 10)
    answers = [_settled_answer(graph, row, special) for row in rows]
    best = max(range(CANDIDATES), key=lambda number: len(answers[number]))
    return Canary(tuple(map(int, rows[best])), answers[best], TOLERANCES[numbers])


def stream_values(outputs: Outputs) -> tuple[float, ...]:
    """What `Canary.values` records of Stream's outputs [tokens, n]."""
    risk, category = (np.exp(_log_softmax(outputs[name])) for name in STREAM_OUTPUTS[:2])
    return tuple(round(float(share), 7) for share in (*risk.ravel(), *category.ravel()))


def _settled_answer(graph: BoundGraph, row: Tokens, special: Collection[int]) -> tuple[float, ...]:
    """Log-probabilities of the first tokens that greedy decoding appends to `row`: up to ANSWER_TOKENS, one at least,
    and none behind a choice by less than MARGIN or an end."""
    found: list[float] = []
    ids = row
    position = 0
    while len(found) < ANSWER_TOKENS:
        logprobs = _log_softmax(graph.run([Chunk(0, position, ids, len(ids) - 1)])[0][GEN_OUTPUTS[0]])[0]
        token = int(logprobs.argmax())
        second, first = np.partition(logprobs, -2)[-2:]
        found.append(float(first))
        if first - second < MARGIN or token in special:
            break
        position += len(ids)
        ids = np.array([token], np.int64)
    return tuple(found)


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
