"""Running an exported guard over KV slots: any rows, ragged, in place.

Knows tokens, positions and slots; nothing of text, verdicts or sessions. `Runner` is the seam that tests put a double
in; `Passes` is what ONNX Runtime (onnx_runner) and TensorRT (tensorrt_runner) have in common.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.slots import PADDING_CELLS

from qwen3guard_runtime.engine.kv_cache import Arena, Slot

Ids = npt.NDArray[np.int64]
Logits = tuple[npt.NDArray[np.float32], ...]

STEP_TOKENS = PADDING_CELLS
"""Rows of up to this many tokens share a pass; longer ones run alone, since padding to them would cost more."""
CHUNK_TOKENS = 512
"""A longer row is run in chunks of this many tokens."""
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


@dataclass(frozen=True)
class PassLimits:
    """What one pass may be. Rows of up to `shared_tokens` share a pass, at most `rows` slots and `asked` tokens with
    logits together; a longer row runs alone, in chunks of `chunk_tokens`, since padding to it would cost more."""

    shared_tokens: int = STEP_TOKENS
    chunk_tokens: int = CHUNK_TOKENS
    rows: int = sys.maxsize
    asked: int = sys.maxsize


class Passes(ABC):
    """A Runner that turns rows into passes over neighbouring slots; what runs a pass is the subclass's."""

    def __init__(self, limits: PassLimits) -> None:
        self._limits = limits

    @abstractmethod
    def _pass(self, arena: Arena, first: int, ids: Ids, positions: Ids, index: Ids) -> Logits:
        """One run of the graph over the slots from `first` on: its outputs, a row for each of `index` [asked, 2]."""

    def forward(self, rows: Sequence[Row]) -> list[Logits]:
        logits: dict[int, Logits] = {}
        short = [row for row in rows if len(row.ids) <= self._limits.shared_tokens]
        for row in rows:
            if len(row.ids) > self._limits.shared_tokens:
                logits[id(row)] = self._prefill(row)
        for window in windows(short, self._limits):
            logits |= zip(map(id, window), self._run(window), strict=True)
        return [logits[id(row)] for row in rows]

    def _prefill(self, row: Row) -> Logits:
        found = []
        size = min(self._limits.chunk_tokens, self._limits.asked)
        for start in range(0, len(row.ids), size):
            ids = row.ids[start : start + size]
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
        # A pass that only fills the cache still asks for one token: no kernel need know an empty batch.
        outputs = self._pass(arena, first, ids, positions, np.array(index or [(0, 0)], np.int64))

        results = []
        start = 0
        for row in rows:
            row.slot.length += len(row.ids)
            end = start + len(row.asked)
            results.append(tuple(output[start:end] for output in outputs))
            start = end
        return results


def windows(rows: Sequence[Row], limits: PassLimits) -> Iterator[list[Row]]:
    """Groups rows whose slots stand near enough to share a pass, each group in slot order."""
    window: list[Row] = []
    asked = 0
    for row in sorted(rows, key=lambda row: (row.slot.arena.capacity, row.slot.row)):
        if window:
            first, last = window[0].slot, window[-1].slot
            apart = row.slot.arena is not last.arena or row.slot.row - last.row - 1 > GAP_ROWS
            if apart or row.slot.row - first.row >= limits.rows or asked + len(row.asked) > limits.asked:
                yield window
                window, asked = [], 0
        window.append(row)
        asked += len(row.asked)
    if window:
        yield window
