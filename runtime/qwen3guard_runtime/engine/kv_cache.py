"""KV slots: where the keys and values of each sequence stand, and how many of them count.

A slot is never copied to be read and never zeroed to be rewound: rewinding sets its length. Slots live in
arenas, one for each capacity: of this process's memory (`HostArena`), or of a GPU's (`cuda.DeviceArena`).
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import OverBudget, Overloaded
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.slots import PADDING_CELLS, capacities, slot_bytes

from qwen3guard_runtime.parameters import memory_bytes


class Arena(ABC):
    """`rows` slots of one `capacity`: for each of the manifest's caches an array [rows, ...], all in one memory."""

    def __init__(self, manifest: Manifest, rows: int, capacity: int) -> None:
        self.rows = rows
        self.capacity = capacity
        self.caches = manifest.caches
        self.slots: list[Slot | None] = [None] * rows
        self.slot_bytes = slot_bytes(self.caches, capacity)

    @property
    def live(self) -> int:
        return self.rows - self.slots.count(None)

    @property
    def room(self) -> int:
        """Tokens that a slot of this arena can hold."""
        return self.capacity - PADDING_CELLS

    @abstractmethod
    def address(self, number: int, row: int) -> int:
        """Where the part of the slot `row` begins that is of cache `number`."""

    @abstractmethod
    def copy(self, row: int, target: Slot, tokens: int) -> None:
        """Writes the first `tokens` of the slot `row` into `target`, of the same memory but perhaps another arena."""

    def forget(self, row: int) -> None:
        """Clears the slot and frees it: what stood there would still be multiplied by the 0 of a mask, and NaN stay."""
        self._clear(row)
        self.slots[row] = None

    @abstractmethod
    def _clear(self, row: int) -> None:
        """Makes every cell of the slot `row` 0, before the next pass."""


class HostArena(Arena):
    """Slots in this process's memory: address space until a token is written."""

    def __init__(self, manifest: Manifest, rows: int, capacity: int) -> None:
        super().__init__(manifest, rows, capacity)
        # Private pages, since the kernel takes shared ones back only with the whole mapping.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._maps = [mmap.mmap(-1, rows * cache.row_bytes(capacity), flags=private) for cache in self.caches]
        self._bytes = [np.frombuffer(memory, np.uint8) for memory in self._maps]
        self.arrays: list[npt.NDArray[np.generic]] = [
            np.frombuffer(memory, cache.numpy).reshape(rows, *cache.shape(capacity))
            for memory, cache in zip(self._maps, self.caches, strict=True)
        ]

    def address(self, number: int, row: int) -> int:
        array = self.arrays[number]
        return int(array.ctypes.data) + row * array.strides[0]

    def copy(self, row: int, target: Slot, tokens: int) -> None:
        assert isinstance(target.arena, HostArena)
        for cache, one, other in zip(self.caches, self.arrays, target.arena.arrays, strict=True):
            cells = (slice(None),) * (cache.cell_axis - 1) + (slice(tokens),)
            other[target.row][cells] = one[row][cells]

    def _clear(self, row: int) -> None:
        """Gives the pages back that are the row's alone, which zeroes them; those that it shares are written."""
        for memory, view, cache in zip(self._maps, self._bytes, self.caches, strict=True):
            stride = cache.row_bytes(self.capacity)
            begin, end = row * stride, (row + 1) * stride
            first = min(end, -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE)
            last = max(first, end // mmap.PAGESIZE * mmap.PAGESIZE)
            if first < last:
                memory.madvise(mmap.MADV_DONTNEED, first, last - first)
            view[begin:first] = 0
            view[last:end] = 0


class Memory(Protocol):
    """Where slots are: what sizes they have there, and how much there is."""

    def capacities(self, context: int) -> Sequence[int]: ...

    def arena(self, manifest: Manifest, rows: int, capacity: int) -> Arena: ...

    def free_bytes(self) -> int: ...


class HostMemory:
    """This process's own, where a slot that is not written costs nothing: many sizes, each for all the slots."""

    def capacities(self, context: int) -> Sequence[int]:
        return list(capacities(context))

    def arena(self, manifest: Manifest, rows: int, capacity: int) -> Arena:
        return HostArena(manifest, rows, capacity)

    def free_bytes(self) -> int:
        return memory_bytes()


HOST = HostMemory()


@dataclass(eq=False)
class Slot:
    """One sequence's place: `length` tokens count, whatever stands behind them."""

    arena: Arena
    row: int
    length: int = field(default=0)


class KVCache:
    """Up to `slots` slots of one guard, each growing up to `context` tokens, in at most `budget_bytes` together.

    Raises OverBudget for a budget that one slot of the whole context exceeds.
    """

    def __init__(
        self, manifest: Manifest, *, slots: int, budget_bytes: int | None = None, memory: Memory = HOST
    ) -> None:
        sizes = {capacity: slot_bytes(manifest.caches, capacity) for capacity in memory.capacities(manifest.context)}
        largest = self.least_bytes(manifest, memory)
        self.slots = slots
        self.budget_bytes = slots * largest if budget_bytes is None else budget_bytes
        if self.budget_bytes < largest:
            raise OverBudget(
                f"The KV budget of {self.budget_bytes} bytes is less than one stream of "
                f"{manifest.context} tokens takes: {largest} bytes."
            )
        self._arenas = [
            memory.arena(manifest, min(slots, self.budget_bytes // size), capacity) for capacity, size in sizes.items()
        ]

    @staticmethod
    def least_bytes(manifest: Manifest, memory: Memory = HOST) -> int:
        """The smallest budget: one slot of the whole context."""
        return max(slot_bytes(manifest.caches, capacity) for capacity in memory.capacities(manifest.context))

    def has_room(self, tokens: int, slot: Slot | None = None) -> bool:
        """Whether `slot`, or a new one, can have `tokens` in all."""
        if slot and tokens <= slot.arena.room:
            return True
        needed = self._arena_for(tokens).slot_bytes
        if slot is None:
            return self.live < self.slots and self.used_bytes + needed <= self.budget_bytes
        return self.used_bytes + needed - slot.arena.slot_bytes <= self.budget_bytes

    def acquire(self, tokens: int) -> Slot:
        """A free slot with room for `tokens`. Raises Overloaded where there is none."""
        if not self.has_room(tokens):
            raise Overloaded("All KV memory is taken; try again later.")
        arena = self._arena_for(tokens)
        row = arena.slots.index(None)
        slot = Slot(arena, row)
        arena.slots[row] = slot
        return slot

    def grow(self, slot: Slot, tokens: int) -> None:
        """Makes room for `tokens` in all, moving the slot to a larger arena where it must. Raises Overloaded."""
        if tokens <= slot.arena.room:
            return
        if not self.has_room(tokens, slot):
            raise Overloaded("All KV memory is taken; try again later.")
        old, old_row = slot.arena, slot.row
        slot.arena = self._arena_for(tokens)
        slot.row = slot.arena.slots.index(None)
        slot.arena.slots[slot.row] = slot
        copy(Slot(old, old_row, slot.length), slot, slot.length)
        old.forget(old_row)

    def release(self, slot: Slot) -> None:
        slot.arena.forget(slot.row)
        slot.length = 0

    @property
    def live(self) -> int:
        return sum(arena.live for arena in self._arenas)

    @property
    def used_bytes(self) -> int:
        return sum(arena.live * arena.slot_bytes for arena in self._arenas)

    def _arena_for(self, tokens: int) -> Arena:
        return next(arena for arena in self._arenas if tokens <= arena.room)


def copy(source: Slot, target: Slot, tokens: int) -> None:
    """Makes the first `tokens` of `source` all that `target` holds. Both are in one memory, perhaps of two caches."""
    source.arena.copy(source.row, target, tokens)
    target.length = tokens
