"""The shapes that are measured, the bytes that a step reads, and its floors from the ceilings of the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import figures  # noqa: F401  it finds tests/support
from support.random_checkpoint import SHAPES

ELEMENT_BYTES = 2
"""Weights, keys and values are fp16 or bf16."""
LAUNCHES_A_LAYER = 18
LAUNCHES_BESIDE = {"stream": 13, "gen": 18}
"""The launches of a recorded step of the form `paged`, as tests/gpu counts them over a CUDA runtime that is not there:
517 and 522 for 28 layers."""
CONTEXT = 4096
FAKE: dict[str, Any] = {
    "hidden": 256,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 128,
    "ffn": 384,
    "vocab": 8192,
    "inner": 64,
}
"""Head size 128 as in the true shapes: it chooses the attention's kernel. The demo's tokenizers have 8,192 tokens."""


def checkpoint_shape(size: str, *, fake: bool) -> dict[str, Any]:
    """The arguments of `random_checkpoint.make`. `size` is 0.6B or 4B."""
    return (FAKE if fake else SHAPES[size]) | {"context": CONTEXT}


@dataclass(frozen=True)
class Work:
    """One pass of a guard: `rows` sequences of `context` cells each, and `k` new tokens of each."""

    size: str
    variant: str
    rows: int = 1
    context: int = 512
    k: int = 1


def products(shape: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The (outputs, inputs) of each matrix of a layer, as the graph multiplies them."""
    query, keys = shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]
    return {
        "qkv": (query + 2 * keys, shape["hidden"]),
        "o": (shape["hidden"], query),
        "gate": (shape["ffn"], shape["hidden"]),
        "up": (shape["ffn"], shape["hidden"]),
        "down": (shape["hidden"], shape["ffn"]),
    }


def lm_head(shape: Mapping[str, Any]) -> tuple[int, int]:
    return shape["vocab"], shape["hidden"]


def weight_bytes(shape: Mapping[str, Any], variant: str) -> int:
    """The bytes of the layers' matrices, and for Gen of the output head. The embedding is not read in a step, and
    Stream's heads are small."""
    numbers = shape["layers"] * sum(rows * columns for rows, columns in products(shape).values())
    if variant == "gen":
        numbers += shape["vocab"] * shape["hidden"]
    return ELEMENT_BYTES * numbers


def cell_bytes(shape: Mapping[str, Any]) -> int:
    """The bytes of the keys and values of one token."""
    return int(ELEMENT_BYTES * 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"])


@dataclass(frozen=True)
class Ceilings:
    """What the card can do: `copy_gb_s` counts bytes read and written, `product_us` has the microseconds of each
    matrix times a vector by (size, name), `graph_launch_us` those of one launch in a CUDA graph, and `launch_us` those
    of one launch alone."""

    copy_gb_s: float
    product_us: Mapping[tuple[str, str], float]
    graph_launch_us: float
    tflops: float
    launch_us: float

    @classmethod
    def of(cls, found: list[dict[str, Any]]) -> Ceilings | None:
        """Read from the figures of ceilings.py; None if one is missing."""
        named = {figure["figure"]: figure for figure in found}
        try:
            return cls(
                named["copy"]["gb_s"],
                {(each["size"], each["name"]): each["us"] for each in found if each["figure"] == "product"},
                named["launch in a CUDA graph"]["us"],
                named["square product"]["tflops"],
                named["launch alone"]["us"],
            )
        except KeyError:
            return None

    def floor_ms(self, work: Work) -> float:
        """The least milliseconds of `work`: every weight and every held cell is read once at the copy's bandwidth, or
        its products are computed at the square product's rate, whichever takes longer."""
        shape = SHAPES[work.size]
        read = weight_bytes(shape, work.variant) + work.rows * work.context * cell_bytes(shape)
        layers = weight_bytes(shape, "stream") // ELEMENT_BYTES
        operations = 2 * work.rows * work.k * layers
        return max(read / self.copy_gb_s / 1e6, operations / self.tflops / 1e9)

    def products_ms(self, work: Work) -> float | None:
        """The milliseconds of a step's products of one vector each, at the rates that the card reached at these very
        shapes. None if one was not measured."""
        shape = SHAPES[work.size]
        try:
            layer = sum(self.product_us[work.size, name] for name in products(shape))
            head = self.product_us[work.size, "lm_head"] if work.variant == "gen" else 0.0
        except KeyError:
            return None
        return (shape["layers"] * layer + head) / 1e3

    def launches_ms(self, work: Work, *, recorded: bool = True) -> float:
        """The milliseconds of a pass's launches, if each did nothing. Steps of one token a row are recorded."""
        count = SHAPES[work.size]["layers"] * LAUNCHES_A_LAYER + LAUNCHES_BESIDE[work.variant]
        return count * (self.graph_launch_us if recorded else self.launch_us) / 1e3
