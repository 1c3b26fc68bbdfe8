"""The geometry of KV slots: the arrays that a slot is made of, the sizes that slots have, and their bytes.

A slot holds the keys and values of one sequence, one cell for each token. The exporter writes graphs that work on these
slots, the TensorRT build takes the size of its caches from them, and the runtime allocates them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

CAPACITY = "capacity"
"""The name of the dimension of a cache that is the slot's number of cells."""
CELL_STEP = 64
"""Every capacity is a multiple of this, because int8 attention works on blocks of 64 cells."""
PAGE_CELLS = 256
"""The cells of a page, of which a paged slot is made. FlashAttention reads pages of this size where they are."""
PADDING_CELLS = 16
"""Cells at the end of every slot that hold no token. The padding of a ragged batch is written there."""
SMALLEST_TOKENS = 256


@dataclass(frozen=True)
class Cache:
    """One array of one layer's keys and values. Its shape is [rows, *dims], where each row is a slot and CAPACITY in
    `dims` stands for the slot's number of cells.

    Bind the graph's input `past` and its output `present` to the same buffer. `dtype` is a name of numpy or ml_dtypes.
    """

    part: str
    layer: int
    dtype: str
    dims: tuple[int | str, ...]

    @property
    def past(self) -> str:
        return f"past_{self.part}.{self.layer}"

    @property
    def present(self) -> str:
        return f"present_{self.part}.{self.layer}"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """`dtype`, or uint16 for bfloat16, which numpy does not have."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    @property
    def cell_axis(self) -> int:
        return 1 + self.dims.index(CAPACITY)

    def shape(self, capacity: int) -> tuple[int, ...]:
        """The shape of one row."""
        return tuple(capacity if isinstance(dim, str) else dim for dim in self.dims)

    def row_bytes(self, capacity: int) -> int:
        return math.prod(self.shape(capacity)) * self.numpy.itemsize


def caches(kv_dtype: str, *, layers: int, kv_heads: int, head_dim: int, paged: bool = False) -> tuple[Cache, ...]:
    """The arrays of a slot, layer by layer. In `paged` ones the heads of a cell stand together.

    With int8 the keys are transposed, with one column for each cell. A layer then has a third array with a float32
    scale for each cell and head, first those of the keys, then those of the values: a number is its int8 times its
    scale.
    """
    return tuple(cache for layer in range(layers) for cache in _of_layer(kv_dtype, layer, kv_heads, head_dim, paged))


def _of_layer(kv_dtype: str, layer: int, kv_heads: int, head_dim: int, paged: bool) -> tuple[Cache, ...]:
    if kv_dtype == "int8":
        return (
            Cache("key", layer, "int8", (kv_heads, head_dim, CAPACITY)),
            Cache("value", layer, "int8", (kv_heads, CAPACITY, head_dim)),
            Cache("scale", layer, "float32", (2 * kv_heads, 1, CAPACITY)),
        )
    dims = (CAPACITY, kv_heads, head_dim) if paged else (kv_heads, CAPACITY, head_dim)
    return Cache("key", layer, kv_dtype, dims), Cache("value", layer, kv_dtype, dims)


def slot_bytes(caches: Iterable[Cache], capacity: int) -> int:
    """The bytes of a slot of `capacity` cells, in all layers."""
    return sum(cache.row_bytes(capacity) for cache in caches)


def whole_blocks(cells: int) -> int:
    """Rounds `cells` up to a multiple of CELL_STEP."""
    return -(-cells // CELL_STEP) * CELL_STEP


def whole_pages(cells: int) -> int:
    """Rounds `cells` up to a multiple of PAGE_CELLS."""
    return -(-cells // PAGE_CELLS) * PAGE_CELLS


def capacity_for(tokens: int) -> int:
    """The smallest capacity with room for `tokens` and the padding after them."""
    return whole_blocks(tokens + PADDING_CELLS)


def capacities(context: int) -> Iterator[int]:
    """The capacities of slots in cells, ascending. The last has room for the whole context.

    They are 256, 512, 768 and so on, each plus 64; from 2048 on the step doubles at each power of two. Attention reads
    a slot to its end, so a slot should be little longer than its tokens. But only slots of one capacity can share a
    pass, so there should be few capacities. The 64 are for contexts that are a little longer than a round number.
    """
    step = tokens = SMALLEST_TOKENS
    while tokens + CELL_STEP - PADDING_CELLS < context:
        yield tokens + CELL_STEP
        if tokens >= 8 * step:
            step *= 2
        tokens += step
    yield capacity_for(context)
