"""Running an exported graph over KV slots: any rows, ragged, in place.

Knows tokens, positions and slots; nothing of text, verdicts or sessions. `Runner` is the seam: the graph may
run in ONNX Runtime or elsewhere, and tests put a double in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime
from qwen3guard_client.errors import CorruptFile, ExportMissing
from qwen3guard_client.manifest import (
    GRAPH,
    INPUT_IDS,
    LOGIT_INDEX,
    POSITIONS,
    Manifest,
)

from qwen3guard_runtime.kv_cache import SLACK, Arena, Slot

Ids = npt.NDArray[np.int64]
Logits = tuple[npt.NDArray[np.float32], ...]

STEP_TOKENS = SLACK
"""Rows of up to this many tokens share a pass; longer ones run alone, since padding to them would cost more."""
CHUNK_TOKENS = 512
"""A longer row is run in chunks of this many tokens."""
BINDINGS = 64
"""Stretches of slots whose bindings are kept; binding the 56 caches of a 0.6B anew costs less than a millisecond."""
GAP_ROWS = 3
"""Idle slots between two rows that are still cheaper to run along than a pass of their own."""


@dataclass(frozen=True)
class Row:
    """`ids` to append to `slot`, and the indices in `ids` whose logits are wanted, ascending."""

    slot: Slot
    ids: Ids
    asked: Sequence[int]


class Runner(Protocol):
    def forward(self, rows: Sequence[Row]) -> list[Logits]:
        """Appends each row's tokens to its slot; for each row the graph's outputs at its asked tokens.

        Each output is float32 [len(asked), width]. Rows name different slots, each with room for its ids.
        """
        ...


class OnnxRunner:
    """One ONNX Runtime session; keys and values are read and written where the slots are."""

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int = 0) -> None:
        graph = folder / GRAPH
        if not graph.is_file():
            raise ExportMissing(f"{graph} is missing: export a checkpoint first.")
        options = onnxruntime.SessionOptions()
        # With more threads than KV heads the products of a small batch are split otherwise than a large one's.
        options.intra_op_num_threads = threads or min(manifest.kv_heads, os.cpu_count() or 1)
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise CorruptFile(f"{graph} cannot be loaded: {str(error)[:200]}.") from error
        self._outputs = manifest.outputs
        self._binding = lru_cache(BINDINGS)(self._bind)

    def forward(self, rows: Sequence[Row]) -> list[Logits]:
        logits: dict[int, Logits] = {}
        for row in rows:
            if len(row.ids) > STEP_TOKENS:
                logits[id(row)] = self._prefill(row)
        for window in windows([row for row in rows if len(row.ids) <= STEP_TOKENS]):
            logits |= zip(map(id, window), self._run(window), strict=True)
        return [logits[id(row)] for row in rows]

    def _prefill(self, row: Row) -> Logits:
        found = []
        for start in range(0, len(row.ids), CHUNK_TOKENS):
            ids = row.ids[start : start + CHUNK_TOKENS]
            asked = [index - start for index in row.asked if start <= index < start + len(ids)]
            found += self._run([Row(row.slot, ids, asked)])
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    def _run(self, rows: Sequence[Row]) -> list[Logits]:
        """One pass over the slots from the first row's to the last row's, all of one arena and in order.

        Idle slots between them, and the padding of shorter rows, write behind their slot's length.
        """
        arena, first = rows[0].slot.arena, rows[0].slot.row
        count = rows[-1].slot.row - first + 1
        tokens = max(len(row.ids) for row in rows)
        ids = np.zeros((count, tokens), np.int64)
        slots = arena.slots[first : first + count]
        positions = np.array([slot.length if slot else 0 for slot in slots], np.int64)
        index = []
        for row in rows:
            at = row.slot.row - first
            ids[at, : len(row.ids)] = row.ids
            index += [(at, column) for column in row.asked]

        binding = self._binding(arena, first, count)
        binding.bind_cpu_input(INPUT_IDS, ids)
        binding.bind_cpu_input(POSITIONS, positions)
        # A pass that only fills the cache still asks for one token: no kernel need know an empty batch.
        binding.bind_cpu_input(LOGIT_INDEX, np.array(index or [(0, 0)], np.int64))
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        outputs = [value.numpy() for value in binding.get_outputs()[-len(self._outputs) :]]

        results = []
        start = 0
        for row in rows:
            row.slot.length += len(row.ids)
            end = start + len(row.asked)
            results.append(tuple(output[start:end] for output in outputs))
            start = end
        return results

    def _bind(self, arena: Arena, first: int, count: int) -> onnxruntime.IOBinding:
        """Past and present bound to the same memory, for a stretch of slots."""
        binding = self._session.io_binding()
        for cache, array in zip(arena.caches, arena.arrays, strict=True):
            rows = array[first : first + count]
            binding.bind_input(cache.past, "cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
            binding.bind_output(cache.present, "cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
        return binding


def windows(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Groups rows whose slots stand near enough to share a pass, each group in slot order."""
    window: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.slot.arena.capacity, row.slot.row)):
        if window:
            last = window[-1].slot
            if row.slot.arena is not last.arena or row.slot.row - last.row - 1 > GAP_ROWS:
                yield window
                window = []
        window.append(row)
    if window:
        yield window
