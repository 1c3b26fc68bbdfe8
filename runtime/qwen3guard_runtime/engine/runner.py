"""Runs an exported guard over KV slots, which it reads and writes in place. Rows may have different lengths.

This module knows tokens, positions and slots, and nothing of text, verdicts or sessions. Tests replace a `Runner` by a
double. `Passes` is the part that the runners of ONNX Runtime (onnx_runner) and TensorRT (tensorrt_runner) share.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import TokenOutOfRange
from qwen3guard_contract.slots import PADDING_CELLS

from qwen3guard_runtime.engine.kv_cache import Arena, Ids, Slot

Logits = tuple[npt.NDArray[np.float32], ...]

STEP_TOKENS = PADDING_CELLS
"""Rows of up to this many tokens share a pass. A longer row runs alone, because to pad the others to its length would
take more time."""
CHUNK_TOKENS = 512
"""A longer row runs in chunks of this many tokens."""
GAP_ROWS = 3
"""Up to this many idle slots between two rows run along in their pass, which takes less time than a second pass."""


@dataclass(frozen=True)
class Row:
    """Tokens to append to `slot`: `ids` is int64 [tokens], and `asked` are the indices in it whose logits are wanted,
    ascending."""

    slot: Slot
    ids: Ids
    asked: Sequence[int]


class Runner(Protocol):
    def forward(self, rows: Sequence[Row]) -> list[Logits]:
        """Appends each row's tokens to its slot (`Slot.append`). Returns for each row the graph's outputs at its asked
        tokens.

        Each output is float32 [len(asked), width]. The rows must have different slots, with room for their ids.
        """
        ...


@dataclass(frozen=True)
class PassLimits:
    """The limits of one pass. Rows of up to `shared_tokens` share a pass of at most `rows` slots and `asked` tokens
    with logits. A longer row runs alone, in chunks of `chunk_tokens`."""

    shared_tokens: int = STEP_TOKENS
    chunk_tokens: int = CHUNK_TOKENS
    rows: int = sys.maxsize
    asked: int = sys.maxsize


class Passes(ABC):
    """A Runner that divides rows into passes over neighbouring slots. Its subclass runs a pass."""

    def __init__(self, limits: PassLimits) -> None:
        self._limits = limits

    @abstractmethod
    def _pass(self, arena: Arena, first: int, ids: Ids, positions: Ids, index: Ids) -> Logits:
        """Runs the graph once, over the len(ids) slots from the slot `first` on.

        `ids` is int64 [slots, tokens], `positions` int64 [slots], `index` int64 [asked, 2], as the graph's inputs.
        Returns its outputs, each float32 [asked, width].
        """

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
        """Runs one row alone, in chunks."""
        chunks = []
        size = min(self._limits.chunk_tokens, self._limits.asked)
        for start in range(0, len(row.ids), size):
            ids = row.ids[start : start + size]
            asked = [index - start for index in row.asked if start <= index < start + len(ids)]
            chunks += self._run([Row(row.slot, ids, asked)])
        return tuple(np.concatenate(parts) for parts in zip(*chunks, strict=True))

    def _run(self, rows: Sequence[Row]) -> list[Logits]:
        """Runs one pass over all slots from the first row's to the last row's. The rows are of one arena and in the
        order of their slots.

        Idle slots between them, and the padding of shorter rows, only write cells after their slot's length.
        """
        arena, first = rows[0].slot.arena, rows[0].slot.row
        count = rows[-1].slot.row - first + 1
        tokens = max(len(row.ids) for row in rows)
        ids = np.zeros((count, tokens), np.int64)
        slots = arena.slots[first : first + count]
        positions = np.array([slot.length if slot else 0 for slot in slots], np.int64)
        index = []
        for row in rows:
            offset = row.slot.row - first
            ids[offset, : len(row.ids)] = row.ids
            index += [(offset, column) for column in row.asked]
        # A pass that only fills the cache asks for one token too, so that no kernel has to support an empty batch.
        outputs = self._pass(arena, first, ids, positions, np.array(index or [(0, 0)], np.int64))

        results = []
        start = 0
        for row in rows:
            row.slot.append(row.ids)
            end = start + len(row.asked)
            results.append(tuple(output[start:end] for output in outputs))
            start = end
        return results


def windows(rows: Sequence[Row], limits: PassLimits) -> Iterator[list[Row]]:
    """Groups rows whose slots are near enough to share a pass. Each group is in the order of its slots."""
    window: list[Row] = []
    asked = 0
    for row in sorted(rows, key=lambda row: (row.slot.arena.capacity, row.slot.row)):
        if window:
            first, last = window[0].slot, window[-1].slot
            is_far = row.slot.arena is not last.arena or row.slot.row - last.row - 1 > GAP_ROWS
            if is_far or row.slot.row - first.row >= limits.rows or asked + len(row.asked) > limits.asked:
                yield window
                window, asked = [], 0
        window.append(row)
        asked += len(row.asked)
    if window:
        yield window


def check_ids(ids: Ids, vocab_size: int) -> None:
    """Raises TokenOutOfRange if the model has no embedding for one of the ids."""
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise TokenOutOfRange(f"A token id is outside the vocabulary of {vocab_size}.")
