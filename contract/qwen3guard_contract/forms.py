"""The forms in which a guard can be exported: what its weights are kept in, and how attention reads keys and values.

What a form implies, for whoever writes such a graph, proves it or serves it, is here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

WeightFormat = Literal["fp32", "dq8r", "fp16", "bf16"]
"""fp32 is exact. dq8r multiplies in integers: each token's row by its own scale, each output channel of the weights by
its. fp16 and bf16 multiply in two bytes."""
WEIGHT_FORMATS: tuple[str, ...] = get_args(WeightFormat)
AttentionForm = Literal["decomposed", "int8", "portable", "gqa"]
"""decomposed is what ONNX Runtime runs fastest on CPUs; int8 is the same over keys and values of eight bits; portable
is standard ONNX, which TensorRT builds too; gqa is one fused operator of ONNX Runtime on CUDA."""
ATTENTION_FORMS: tuple[str, ...] = get_args(AttentionForm)

_KV_OF_TWO_BYTES = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Form:
    """One pair of both. Raises ValueError for an unknown name, and for a pair of which there is no graph."""

    weights: WeightFormat
    attention: AttentionForm

    def __post_init__(self) -> None:
        for value, choices, name in (
            (self.weights, WEIGHT_FORMATS, "weights"),
            (self.attention, ATTENTION_FORMS, "attention"),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        if self.is_two_bytes and self.attention not in ("portable", "gqa"):
            raise ValueError(f"the attention form {self.attention} does not go with {self.weights} weights")

    def __str__(self) -> str:
        return f"{self.weights}, {self.attention}"

    @classmethod
    def named(cls, weights: str, attention: str) -> Form:
        """Raises ValueError."""
        return cls(cast(WeightFormat, weights), cast(AttentionForm, attention))

    @classmethod
    def fastest(cls, variant: str, weights: str) -> Form:
        """What was measured to be fastest on CPUs (docs/performance.md) without losing more than `weights` do; for
        weights of two bytes, which are not for CPUs, what runs everywhere.

        Stream's steps read much KV for few tokens, and many sessions stay in memory; Gen's passes are long and few.
        """
        if weights in _KV_OF_TWO_BYTES:
            return cls.named(weights, "portable")
        return cls.named(weights, "int8" if variant == "stream" and weights == "dq8r" else "decomposed")

    @property
    def is_two_bytes(self) -> bool:
        """Whether the weights are floats of two bytes."""
        return self.weights in _KV_OF_TWO_BYTES

    @property
    def has_integer_weights(self) -> bool:
        return self.weights == "dq8r"

    @property
    def has_integer_kv(self) -> bool:
        return self.attention == "int8"

    @property
    def has_integers(self) -> bool:
        """Whether anything in the graph is multiplied in integers, which not every CPU does exactly by itself."""
        return self.has_integer_weights or self.has_integer_kv

    @property
    def coarsest(self) -> WeightFormat:
        """The format whose rounding bounds how exact the graph is: keys and values of eight bits round as dq8r does."""
        return "dq8r" if self.has_integer_kv else self.weights

    @property
    def kv_dtype(self) -> str:
        """numpy's name, or ml_dtypes', for what a cell of keys or values is made of."""
        return "int8" if self.has_integer_kv else _KV_OF_TWO_BYTES.get(self.weights, "float32")

    @property
    def promises_equal_bits(self) -> bool:
        """Whether a row has the same result to the bit whatever rows are in its batch, and on every kind of CPU."""
        return self.has_integer_weights and self.attention in ("decomposed", "int8")

    @property
    def takes_ragged_rows(self) -> bool:
        """Whether rows of several tokens, from different positions on, may share a pass."""
        return self.attention != "gqa"

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What it is made for."""
        return "cuda" if self.attention == "gqa" else "cpu"
