"""Runs an exported graph in every way in which the server writes its slots, and records what each layer gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qwen3guard_export.checkpoint.weight_files import FloatArray
from qwen3guard_export.graph.graph import EMBEDDED, after_attention, after_feed_forward
from qwen3guard_export.proof.bound_graph import BoundGraph, GraphOutputs, RowChunk, joined
from qwen3guard_export.proof.reference import Tokens

_RAGGED_LENGTHS = (6, 13, 9)
_SINGLE_TOKENS = 8


@dataclass(frozen=True)
class Trace:
    """One row as the graph computed it.

    `asked` is the first of its `tokens` with logits, and `outputs` has the logits and the watched tensors by name.
    """

    tokens: Tokens
    asked: int
    outputs: GraphOutputs
    cells: Sequence[tuple[FloatArray, FloatArray]] = ()
    """The keys and values of each layer, [kv_heads, tokens, head_dim]; empty where they were not read."""


def traced_runs(
    bind: Callable[..., BoundGraph], layers: int, rows: Sequence[Tokens], asked: Sequence[int]
) -> tuple[list[Trace], bool]:
    """The traces of every run, and whether rows alone gave the same bits as in the batch.

    First come `rows`, each in one pass. `asked` has each row's first token with logits, and `bind` makes a BoundGraph.
    """
    watched = [EMBEDDED]
    for layer in range(layers):
        watched += [after_attention(layer), after_feed_forward(layer)]
    ragged = [row[:length] for row, length in zip([*rows, *rows, *rows], _RAGGED_LENGTHS, strict=False)]
    graph = bind(slots=len(ragged), watched=watched)
    traces = []
    for row, first in zip(rows, asked, strict=True):
        outputs = graph.run([RowChunk(0, 0, row, first)])[0]
        traces.append(Trace(row, first, outputs, _cells(graph, len(row))))
    last = len(rows) - 1
    for lengths in (_thirds(len(rows[last])), _singles(len(rows[last]))):
        traces.append(Trace(rows[last], asked[last], graph.run_pieces(0, rows[last], lengths, asked[last])))
    graph.fill_with_noise(np.random.default_rng(0))
    batch = [joined(pieces) for pieces in zip(*map(graph.run, _heads_and_tails(ragged)), strict=True)]
    traces += [Trace(row, 0, outputs) for row, outputs in zip(ragged, batch, strict=True)]
    alone = [
        joined([graph.run([head])[0], graph.run([tail])[0]])
        for head, tail in zip(*_heads_and_tails(ragged), strict=True)
    ]
    return traces, all(map(_identical, alone, batch))


def _cells(graph: BoundGraph, tokens: int) -> list[tuple[FloatArray, FloatArray]]:
    """The keys and values of each layer in slot 0, float32 [kv_heads, tokens, head_dim]."""
    parts: dict[tuple[int, str], FloatArray] = {}
    for cache, buffer in graph.slots.items():
        cells = np.moveaxis(buffer[0], cache.cell_axis - 1, 1)[:, :tokens]
        parts[cache.layer, cache.part] = cells.astype(np.float32)
    layers = []
    for layer in sorted({layer for layer, _ in parts}):
        keys, values = parts[layer, "key"], parts[layer, "value"]
        if (layer, "scale") in parts:
            key_scale, value_scale = np.split(parts[layer, "scale"], 2)
            keys, values = keys * key_scale, values * value_scale
        layers.append((keys, values))
    return layers


def _thirds(length: int) -> list[int]:
    first = math.ceil(length / 3)
    return [first, length - first] if length > first else [first]


def _singles(length: int) -> list[int]:
    """The lengths of pieces: the last tokens one by one, and everything before them at once."""
    singles = min(_SINGLE_TOKENS, length)
    return [length - singles] * (length > singles) + [1] * singles


def _heads_and_tails(rows: Sequence[Tokens]) -> tuple[list[RowChunk], list[RowChunk]]:
    """Cuts the rows at different places, so that the second pass starts at a different position in every slot."""
    cuts = [max(1, len(row) - 2 * index - 1) for index, row in enumerate(rows)]
    heads = [RowChunk(slot, 0, row[:cut]) for slot, (row, cut) in enumerate(zip(rows, cuts, strict=True))]
    tails = [RowChunk(slot, cut, row[cut:]) for slot, (row, cut) in enumerate(zip(rows, cuts, strict=True))]
    return heads, tails


def _identical(one: GraphOutputs, other: GraphOutputs) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in other)
