"""KV slots: where the keys and values of each sequence stand, and how many of them count.

A slot is never copied to be read and never zeroed to be rewound: rewinding sets its length. Slots live in
arenas, one for each capacity; an arena is address space until a token is written, and gives its pages back
when a slot is freed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from qwen3guard_client.errors import OverBudget, Overloaded
from qwen3guard_client.manifest import Manifest

SLACK = 16
"""Cells at the end of every slot that hold no token: padding of a ragged batch is written there."""
SMALLEST = 256


class Arena:
    """`rows` slots of one `capacity`: for each layer and part an array [rows, kv_heads, capacity, head_dim]."""

    def __init__(self, manifest: Manifest, rows: int, capacity: int) -> None:
        self.rows = rows
        self.capacity = capacity
        self.shape = (manifest.kv_heads, capacity, manifest.head_dim)
        self.dtype = np.dtype(manifest.kv_dtype)
        self.slots: list[Slot | None] = [None] * rows
        self.slot_bytes = slot_bytes(manifest, capacity)
        self.stride = int(np.prod(self.shape)) * self.dtype.itemsize
        if self.stride % mmap.PAGESIZE:
            raise ValueError(f"a slot of {self.stride} bytes does not fill whole pages")
        # Private pages, since the kernel takes shared ones back only with the whole mapping.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._maps = [mmap.mmap(-1, rows * self.stride, flags=private) for _ in range(2 * manifest.layers)]
        self.arrays: list[npt.NDArray[np.generic]] = [
            np.frombuffer(memory, self.dtype).reshape(rows, *self.shape) for memory in self._maps
        ]

    @property
    def live(self) -> int:
        return self.rows - self.slots.count(None)

    @property
    def room(self) -> int:
        """Tokens that a slot of this arena can hold."""
        return self.capacity - SLACK

    def address(self, array: int, row: int) -> int:
        return int(self.arrays[array].ctypes.data) + row * self.stride

    def forget(self, row: int) -> None:
        """Gives the row's memory back; what stood there reads as zeros from now on."""
        self.slots[row] = None
        for memory in self._maps:
            memory.madvise(mmap.MADV_DONTNEED, row * self.stride, self.stride)


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

    def __init__(self, manifest: Manifest, *, slots: int, budget_bytes: int | None = None) -> None:
        sizes = {capacity: slot_bytes(manifest, capacity) for capacity in capacities(manifest.context)}
        largest = self.least_bytes(manifest)
        self.slots = slots
        self.budget_bytes = slots * largest if budget_bytes is None else budget_bytes
        if self.budget_bytes < largest:
            raise OverBudget(
                f"The KV budget of {self.budget_bytes} bytes is less than one stream of "
                f"{manifest.context} tokens takes: {largest} bytes."
            )
        self._arenas = [
            Arena(manifest, min(slots, self.budget_bytes // size), capacity) for capacity, size in sizes.items()
        ]

    @staticmethod
    def least_bytes(manifest: Manifest) -> int:
        """The smallest budget: one slot of the whole context."""
        return max(slot_bytes(manifest, capacity) for capacity in capacities(manifest.context))

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
    """Makes the first `tokens` of `source` all that `target` holds. Either may be of another arena, or cache."""
    for one, other in zip(source.arena.arrays, target.arena.arrays, strict=True):
        other[target.row, :, :tokens] = one[source.row, :, :tokens]
    target.length = tokens


def slot_bytes(manifest: Manifest, capacity: int) -> int:
    """What a slot of `capacity` cells takes in all layers, keys and values together."""
    cell = manifest.kv_heads * manifest.head_dim * np.dtype(manifest.kv_dtype).itemsize
    return 2 * manifest.layers * capacity * cell


def capacities(context: int) -> Iterator[int]:
    """256, 384, 512, 768 and so on up to the context, then the context itself with its slack, in blocks of 256.

    Attention reads a slot to its end, so no slot is more than half again as long as its tokens.
    """
    capacity = SMALLEST
    while capacity - SLACK < context:
        yield capacity
        capacity = capacity * 4 // 3 if capacity % 3 == 0 else capacity * 3 // 2
    yield -(-(context + SLACK) // SMALLEST) * SMALLEST
