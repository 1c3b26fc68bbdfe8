"""Runs of an exported graph, watched: every way the server writes its slots, and what each layer left behind."""

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
    """One row as the graph computed it: its tokens, the first of them with logits, and all outputs by name."""

    tokens: Tokens
    asked: int
    outputs: GraphOutputs
    cells: Sequence[tuple[FloatArray, FloatArray]] = ()
    """Of each layer keys and values [kv_heads, tokens, head_dim], where they were looked at."""


def traced_runs(
    bind: Callable[..., BoundGraph], layers: int, rows: Sequence[Tokens], asked: Sequence[int]
) -> tuple[list[Trace], bool]:
    """Of every run of the watched graph, those in one pass first; and whether rows alone are those of the batch."""
    watched = [EMBEDDED]
    for layer in range(layers):
        watched += [after_attention(layer), after_feed_forward(layer)]
    ragged = [row[:length] for row, length in zip([*rows, *rows, *rows], _RAGGED_LENGTHS, strict=False)]
    graph = bind(slots=len(ragged), watched=watched)
    found = []
    for row, first in zip(rows, asked, strict=True):
        outputs = graph.run([RowChunk(0, 0, row, first)])[0]
        found.append(Trace(row, first, outputs, _cells(graph, len(row))))
    last = len(rows) - 1
    for lengths in (_thirds(len(rows[last])), _singles(len(rows[last]))):
        found.append(Trace(rows[last], asked[last], graph.run_pieces(0, rows[last], lengths, asked[last])))
    graph.soil(np.random.default_rng(0))
    batch = [joined(pieces) for pieces in zip(*map(graph.run, _heads_and_tails(ragged)), strict=True)]
    found += [Trace(row, 0, outputs) for row, outputs in zip(ragged, batch, strict=True)]
    alone = [
        joined([graph.run([head])[0], graph.run([tail])[0]])
        for head, tail in zip(*_heads_and_tails(ragged), strict=True)
    ]
    return found, all(map(_identical, alone, batch))


def _cells(graph: BoundGraph, tokens: int) -> list[tuple[FloatArray, FloatArray]]:
    """Keys and values of slot 0 as numbers: of each layer [kv_heads, tokens, head_dim]."""
    parts: dict[tuple[int, str], FloatArray] = {}
    for cache, buffer in graph.slots.items():
        cells = np.moveaxis(buffer[0], cache.cell_axis - 1, 1)[:, :tokens]
        parts[cache.layer, cache.part] = cells.astype(np.float32)
    found = []
    for layer in sorted({layer for layer, _ in parts}):
        keys, values = parts[layer, "key"], parts[layer, "value"]
        if (layer, "scale") in parts:
            key_scale, value_scale = np.split(parts[layer, "scale"], 2)
            keys, values = keys * key_scale, values * value_scale
        found.append((keys, values))
    return found


def _thirds(length: int) -> list[int]:
    first = math.ceil(length / 3)
    return [first, length - first] if length > first else [first]


def _singles(length: int) -> list[int]:
    """All but the last tokens at once, those each by itself."""
    singles = min(_SINGLE_TOKENS, length)
    return [length - singles] * (length > singles) + [1] * singles


def _heads_and_tails(rows: Sequence[Tokens]) -> tuple[list[RowChunk], list[RowChunk]]:
    """The rows cut at different depths, so that the second pass starts at a different position in every slot."""
    cuts = [max(1, len(row) - 2 * index - 1) for index, row in enumerate(rows)]
    heads = [RowChunk(slot, 0, row[:cut]) for slot, (row, cut) in enumerate(zip(rows, cuts, strict=True))]
    tails = [RowChunk(slot, cut, row[cut:]) for slot, (row, cut) in enumerate(zip(rows, cuts, strict=True))]
    return heads, tails


def _identical(one: GraphOutputs, other: GraphOutputs) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in other)
