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
from qwen3guard_client.errors import Overloaded
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
    """All slots of one guard, `slots` of them, each growing up to `context` tokens."""

    def __init__(self, manifest: Manifest, *, slots: int) -> None:
        self._slots = slots
        self.context = manifest.context
        self._arenas = [Arena(manifest, slots, capacity) for capacity in capacities(manifest.context)]

    def acquire(self, tokens: int) -> Slot:
        """A free slot with room for `tokens`. Raises Overloaded when all are taken."""
        if self.live >= self._slots:
            raise Overloaded(f"All {self._slots} KV slots are taken.")
        arena = self._arena_for(tokens)
        row = arena.slots.index(None)
        slot = Slot(arena, row)
        arena.slots[row] = slot
        return slot

    def grow(self, slot: Slot, tokens: int) -> None:
        """Makes room for `tokens` in all, moving the slot to a larger arena where it must."""
        if tokens <= slot.arena.room:
            return
        old, old_row = slot.arena, slot.row
        slot.arena = self._arena_for(tokens)
        slot.row = slot.arena.slots.index(None)
        slot.arena.slots[slot.row] = slot
        for source, target in zip(old.arrays, slot.arena.arrays, strict=True):
            target[slot.row, :, : slot.length] = source[old_row, :, : slot.length]
        old.forget(old_row)

    def release(self, slot: Slot) -> None:
        slot.arena.forget(slot.row)
        slot.length = 0

    @property
    def live(self) -> int:
        return sum(slot is not None for arena in self._arenas for slot in arena.slots)

    def _arena_for(self, tokens: int) -> Arena:
        return next(arena for arena in self._arenas if tokens <= arena.room)


def capacities(context: int) -> Iterator[int]:
    """Powers of two up to the context, then the context itself with its slack, in whole pages of cells."""
    capacity = SMALLEST
    while capacity - SLACK < context:
        yield capacity
        capacity *= 2
    yield -(-(context + SLACK) // SMALLEST) * SMALLEST
