"""The forms in which a guard can be exported: the format of its weights, and how attention reads keys and values.

Everything that a form implies for writing, proving and serving a graph is defined here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

WeightFormat = Literal["fp32", "dq8r", "fp16", "bf16"]
"""fp32 is exact. dq8r multiplies integers of 8 bits: each token's row has its own scale, and so has each output channel
of the weights. fp16 and bf16 multiply floats of two bytes."""
WEIGHT_FORMATS: tuple[str, ...] = get_args(WeightFormat)
AttentionForm = Literal["decomposed", "int8", "portable", "paged", "paged_half"]
"""decomposed is the form that ONNX Runtime runs fastest on CPUs. int8 is the same with keys and values of 8 bits.
portable is standard ONNX, which TensorRT can build too. paged is one operator of ONNX Runtime on CUDA, with the norms
and rotations of queries and keys in it, and takes any rows in one pass. In paged_half the residual stream has two bytes
too, which needs fewer launches and rounds at every half of a layer."""
ATTENTION_FORMS: tuple[str, ...] = get_args(AttentionForm)
FORMER_FORMS = {"gqa": "paged"}
"""What stands in the place of a form that there was before."""

_TWO_BYTE_KV = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Form:
    """A format of weights with a form of attention. Raises ValueError for an unknown name, and for a pair that no graph
    has."""

    weights: WeightFormat
    attention: AttentionForm

    def __post_init__(self) -> None:
        for value, choices, name in (
            (self.weights, WEIGHT_FORMATS, "weights"),
            (self.attention, ATTENTION_FORMS, "attention"),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        if self.is_two_bytes and self.uses_cpu_operators:
            raise ValueError(f"the attention form {self.attention} does not go with {self.weights} weights")
        if self.is_paged and not self.is_two_bytes:
            raise ValueError(
                f"the attention form {self.attention} does not go with {self.weights} weights: ONNX Runtime's CUDA"
                " provider has it for fp16 and bf16 alone"
            )

    def __str__(self) -> str:
        return f"{self.weights}, {self.attention}"

    @classmethod
    def named(cls, weights: str, attention: str) -> Form:
        """The form with these two names. Raises ValueError for a name that does not exist."""
        return cls(cast(WeightFormat, weights), cast(AttentionForm, attention))

    @classmethod
    def fastest(cls, variant: str, weights: str) -> Form:
        """The form that was measured to be fastest on CPUs (docs/performance.md) and is as accurate as `weights`.

        Weights of two bytes are not meant for CPUs; for them it is the form that runs everywhere. With dq8r, Stream
        has keys and values of 8 bits, because a step reads many of them for few tokens, and many sessions stay in
        memory. Gen's passes are long and few.
        """
        if weights in _TWO_BYTE_KV:
            return cls.named(weights, "portable")
        return cls.named(weights, "int8" if variant == "stream" and weights == "dq8r" else "decomposed")

    @property
    def is_two_bytes(self) -> bool:
        """Whether the weights are floats of two bytes."""
        return self.weights in _TWO_BYTE_KV

    @property
    def is_float32(self) -> bool:
        """Whether the weights are kept and multiplied in float32."""
        return self.weights == "fp32"

    @property
    def runs_on_cpu(self) -> bool:
        """Whether ONNX Runtime's CPU provider has all operators: it multiplies no bf16, and has no paged attention."""
        return self.weights != "bf16" and not self.is_paged

    @property
    def is_standard(self) -> bool:
        """Whether attention and its surroundings are standard ONNX operators, which TensorRT reads too."""
        return self.attention == "portable"

    @property
    def is_paged(self) -> bool:
        """Whether attention is one operator of ONNX Runtime's CUDA provider over pages of cells (`slots.PAGE_CELLS`).

        Its graph takes the tokens of all rows one after the other (`manifest.PAGED_INPUTS`).
        """
        return self.attention in ("paged", "paged_half")

    @property
    def has_half_residual(self) -> bool:
        """Whether the residual stream between the layers has the type of the weights; else it is float32."""
        return self.attention == "paged_half"

    @property
    def uses_cpu_operators(self) -> bool:
        """Whether attention is made of the operators that ONNX Runtime's CPU provider runs fastest."""
        return not self.is_standard and not self.is_paged

    @property
    def has_integer_weights(self) -> bool:
        return self.weights == "dq8r"

    @property
    def has_integer_kv(self) -> bool:
        return self.attention == "int8"

    @property
    def has_integers(self) -> bool:
        """Whether the graph multiplies integers anywhere. Some CPUs do that exactly only with a repair
        (`integer_products`)."""
        return self.has_integer_weights or self.has_integer_kv

    @property
    def coarsest(self) -> WeightFormat:
        """The format with the coarsest rounding in the graph, which limits its accuracy. Keys and values of 8 bits
        round as coarsely as dq8r."""
        return "dq8r" if self.has_integer_kv else self.weights

    @property
    def kv_dtype(self) -> str:
        """The dtype of keys and values, by its name in numpy or ml_dtypes."""
        return "int8" if self.has_integer_kv else _TWO_BYTE_KV.get(self.weights, "float32")

    @property
    def promises_equal_bits(self) -> bool:
        """Whether a row's result is the same to the bit with any other rows in its batch, and on every kind of CPU."""
        return self.has_integer_weights and self.uses_cpu_operators

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """The kind of device that the form is made for."""
        return "cuda" if self.is_paged else "cpu"
