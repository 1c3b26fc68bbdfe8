"""The geometry of KV slots: what arrays one is made of, in what sizes there are slots, and how many bytes they take.

A slot holds the keys and values of one sequence, a cell for each token. The exporter writes graphs for such slots, the
engine builder sizes an engine by them, and the server keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

CAPACITY = "capacity"
"""The dimension of a cache that is the slot's number of cells."""
CELL_STEP = 64
"""Capacities are multiples of this: int8 attention works in such blocks of cells."""
PADDING_CELLS = 16
"""Cells at the end of every slot that hold no token: the padding of a ragged batch is written there."""
SMALLEST = 256


@dataclass(frozen=True)
class Cache:
    """One array of a layer's KV: a slot a row, [rows, *dims] with the slot's cells where `dims` say CAPACITY.

    Bind the graph's input `past` and its output `present` to one buffer of `dtype`, in numpy's name or ml_dtypes'.
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
        """`dtype`, or where numpy has no such numbers, one of the same size."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    @property
    def cell_axis(self) -> int:
        return 1 + self.dims.index(CAPACITY)

    def shape(self, capacity: int) -> tuple[int, ...]:
        """Of one row."""
        return tuple(capacity if isinstance(dim, str) else dim for dim in self.dims)

    def row_bytes(self, capacity: int) -> int:
        return math.prod(self.shape(capacity)) * self.numpy.itemsize


def caches(kv_dtype: str, *, layers: int, kv_heads: int, head_dim: int) -> tuple[Cache, ...]:
    """The arrays of a slot, layer by layer. With int8, keys stand as columns, and a layer's third array has a scale for
    each cell and head, those of the keys before those of the values: a number is its int8 times its scale."""
    return tuple(cache for layer in range(layers) for cache in _of_layer(kv_dtype, layer, kv_heads, head_dim))


def _of_layer(kv_dtype: str, layer: int, kv_heads: int, head_dim: int) -> tuple[Cache, ...]:
    if kv_dtype == "int8":
        return (
            Cache("key", layer, "int8", (kv_heads, head_dim, CAPACITY)),
            Cache("value", layer, "int8", (kv_heads, CAPACITY, head_dim)),
            Cache("scale", layer, "float32", (2 * kv_heads, 1, CAPACITY)),
        )
    return (
        Cache("key", layer, kv_dtype, (kv_heads, CAPACITY, head_dim)),
        Cache("value", layer, kv_dtype, (kv_heads, CAPACITY, head_dim)),
    )


def slot_bytes(caches: Iterable[Cache], capacity: int) -> int:
    """What a slot of `capacity` cells takes in all layers."""
    return sum(cache.row_bytes(capacity) for cache in caches)


def whole_blocks(cells: int) -> int:
    """`cells` rounded up to a capacity."""
    return -(-cells // CELL_STEP) * CELL_STEP


def capacity_for(tokens: int) -> int:
    """The smallest capacity with room for `tokens` and the padding behind them."""
    return whole_blocks(tokens + PADDING_CELLS)


def capacities(context: int) -> Iterator[int]:
    """64 more than 256, 512, 768 and so on, from 2048 on in steps of a quarter of the last power of two, up to that
    for the whole context.

    Attention reads a slot to its end, so slots are little longer than their tokens; but only slots of one capacity
    share a pass, so there are not too many. The 64 are for contexts that are a round number and a little more.
    """
    step = tokens = SMALLEST
    while tokens + CELL_STEP - PADDING_CELLS < context:
        yield tokens + CELL_STEP
        if tokens >= 8 * step:
            step *= 2
        tokens += step
    yield capacity_for(context)
