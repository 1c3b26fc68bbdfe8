"""KV slots: each holds the keys and values of one sequence, and its tokens.

Passes read a slot where it is, without a copy. To rewind a slot is to set its length, without zeroing it. Slots are in
arenas, one for each capacity, in this process's memory (`HostArena`) or in a GPU's (`cuda.DeviceArena`).
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import OverBudget, Overloaded
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.slots import PADDING_CELLS, SMALLEST_TOKENS, capacities, slot_bytes

from qwen3guard_runtime.engine.host import memory_bytes

Ids = npt.NDArray[np.int64]


class Arena(ABC):
    """`rows` slots of the same `capacity` in cells. Each of the manifest's caches is one array [rows, ...]."""

    def __init__(self, manifest: Manifest, rows: int, capacity: int) -> None:
        self.rows = rows
        self.capacity = capacity
        self.caches = manifest.caches
        self.slots: list[Slot | None] = [None] * rows
        self._padding = 0 if manifest.form.is_paged else PADDING_CELLS
        self.slot_bytes = slot_bytes(self.caches, capacity)

    @property
    def live(self) -> int:
        """The number of slots in use."""
        return self.rows - self.slots.count(None)

    @property
    def room(self) -> int:
        """The number of tokens that a slot of this arena can hold."""
        return self.capacity - self._padding

    @abstractmethod
    def address(self, number: int, row: int) -> int:
        """The address of the first byte of the slot `row` in the array of cache `number`."""

    @abstractmethod
    def copy(self, row: int, target: Slot, tokens: int) -> None:
        """Copies the first `tokens` of the slot `row` to `target`, which may be in another arena of the same memory."""

    def free(self, row: int) -> None:
        """Clears and frees the slot `row`. A NaN that stayed in it would spoil the next sequence: attention multiplies
        masked cells by 0, and 0 x NaN is NaN."""
        self._clear(row)
        self.slots[row] = None

    @abstractmethod
    def _clear(self, row: int) -> None:
        """Sets every cell of the slot `row` to 0, before the next pass."""


class HostArena(Arena):
    """Slots in this process's memory. They are only address space until tokens are written."""

    def __init__(self, manifest: Manifest, rows: int, capacity: int) -> None:
        # Private pages, because the kernel takes back shared pages only with the whole mapping.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        try:
            self._maps = [mmap.mmap(-1, rows * cache.row_bytes(capacity), flags=private) for cache in manifest.caches]
        except (OSError, OverflowError):
            raise OverBudget(f"This machine has no room for {rows} slots of {capacity} tokens: lower slots.") from None
        super().__init__(manifest, rows, capacity)
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
        for cache, source_array, target_array in zip(self.caches, self.arrays, target.arena.arrays, strict=True):
            cells = (slice(None),) * (cache.cell_axis - 1) + (slice(tokens),)
            target_array[target.row][cells] = source_array[row][cells]

    def _clear(self, row: int) -> None:
        """Returns the pages of the row, and of the free rows on both sides, to the kernel, which zeroes them. Passes
        write to free rows too, and a page may belong to several. Where a page is shared with a slot in use, writes
        zeros to the free rows' part of it."""
        begin_row, end_row = row, row + 1
        while begin_row and self.slots[begin_row - 1] is None:
            begin_row -= 1
        while end_row < self.rows and self.slots[end_row] is None:
            end_row += 1
        for memory, view, cache in zip(self._maps, self._bytes, self.caches, strict=True):
            stride = cache.row_bytes(self.capacity)
            begin, end = begin_row * stride, end_row * stride
            first = min(end, -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE)
            last = end if end_row == self.rows else max(first, end // mmap.PAGESIZE * mmap.PAGESIZE)
            if first < last:
                memory.madvise(mmap.MADV_DONTNEED, first, last - first)
            view[begin:first] = 0
            view[last:end] = 0


class Memory(Protocol):
    """A kind of memory for slots: the capacities that they have there, the arenas, and the bytes that are free."""

    def capacities(self, context: int) -> Sequence[int]: ...

    def arena(self, manifest: Manifest, rows: int, capacity: int) -> Arena: ...

    def free_bytes(self) -> int: ...


class HostMemory:
    """This process's memory. Slots that are not written take none of it, so each of many capacities has an arena with
    rows for all slots."""

    def capacities(self, context: int) -> Sequence[int]:
        return list(capacities(context))

    def arena(self, manifest: Manifest, rows: int, capacity: int) -> Arena:
        return HostArena(manifest, rows, capacity)

    def free_bytes(self) -> int:
        return memory_bytes()


HOST = HostMemory()


@dataclass(eq=False)
class Slot:
    """The place of one sequence. Only its first `length` tokens count, whatever the cells after them hold."""

    arena: Arena
    row: int
    length: int = 0
    _ids: Ids = field(default_factory=lambda: np.zeros(SMALLEST_TOKENS, np.int64), repr=False)

    @property
    def ids(self) -> Ids:
        """The tokens that it holds, int64 [length]."""
        return self._ids[: self.length]

    def append(self, ids: Ids) -> None:
        """The keys and values of `ids` (int64 [tokens]) now stand after the others."""
        end = self.length + len(ids)
        if end > len(self._ids):
            self._ids = np.concatenate([self.ids, np.zeros(2 * end - self.length, np.int64)])
        self._ids[self.length : end] = ids
        self.length = end


class KVCache:
    """Up to `slots` slots of one guard, which together take at most `budget_bytes`. Each can grow up to the manifest's
    `context` tokens.

    Raises OverBudget if the budget is less than one slot of the whole context takes, or the slots find no room.
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
        """The smallest budget: the bytes of one slot of the whole context."""
        return max(slot_bytes(manifest.caches, capacity) for capacity in memory.capacities(manifest.context))

    def most_tokens(self, within_bytes: int) -> int:
        """The most tokens that one slot of at most so many bytes holds."""
        return max((arena.room for arena in self._arenas if arena.slot_bytes <= within_bytes), default=0)

    def has_room(self, tokens: int, slot: Slot | None = None, *, without: Collection[Slot] = ()) -> bool:
        """Whether `slot`, or a new slot, can hold `tokens` in all, if the slots `without` were free."""
        if slot and tokens <= slot.arena.room:
            return True
        needed = self._arena_for(tokens).slot_bytes
        used_bytes = self.used_bytes - sum(each.arena.slot_bytes for each in without)
        if slot is None:
            return self.live - len(without) < self.slots and used_bytes + needed <= self.budget_bytes
        return used_bytes + needed - slot.arena.slot_bytes <= self.budget_bytes

    def acquire(self, tokens: int) -> Slot:
        """Takes a free slot with room for `tokens`. Raises Overloaded if there is none."""
        if not self.has_room(tokens):
            raise Overloaded("All KV memory is taken; try again later.")
        arena = self._arena_for(tokens)
        row = arena.slots.index(None)
        slot = Slot(arena, row)
        arena.slots[row] = slot
        return slot

    def grow(self, slot: Slot, tokens: int) -> None:
        """Makes room for `tokens` in all. Moves the slot to an arena of larger slots if needed. Raises Overloaded."""
        if tokens <= slot.arena.room:
            return
        if not self.has_room(tokens, slot):
            raise Overloaded("All KV memory is taken; try again later.")
        arena = self._arena_for(tokens)
        self._move(slot, arena, arena.slots.index(None))

    def settle(self, slot: Slot, *, last: bool = False) -> None:
        """Moves the slot to the first free row, or to the last, of the arena with the smallest slots that its tokens
        have room in: attention reads a slot to its end, and slots that are used together share a pass if they are
        neighbours."""
        arena = self._arena_for(slot.length)
        free = [row for row, other in enumerate(arena.slots) if other is None]
        if not free:
            return
        row = free[-1] if last else free[0]
        is_better = row > slot.row if last else row < slot.row
        if arena is not slot.arena or is_better:
            self._move(slot, arena, row)

    @staticmethod
    def _move(slot: Slot, arena: Arena, row: int) -> None:
        old_arena, old_row = slot.arena, slot.row
        slot.arena, slot.row = arena, row
        arena.slots[slot.row] = slot
        old_arena.copy(old_row, slot, slot.length)
        old_arena.free(old_row)

    def release(self, slot: Slot) -> None:
        slot.arena.free(slot.row)
        slot.length = 0

    @property
    def live(self) -> int:
        """The number of slots in use."""
        return sum(arena.live for arena in self._arenas)

    @property
    def used_bytes(self) -> int:
        return sum(arena.live * arena.slot_bytes for arena in self._arenas)

    def _arena_for(self, tokens: int) -> Arena:
        return next(arena for arena in self._arenas if tokens <= arena.room)


def copy(source: Slot, target: Slot, tokens: int) -> None:
    """Copies the first `tokens` of `source` to `target`, which then holds nothing else.

    Both must be in the same memory; they may be of two KVCaches.
    """
    source.arena.copy(source.row, target, tokens)
    target.length = 0
    target.append(source.ids[:tokens])
