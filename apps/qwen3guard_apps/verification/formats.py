"""The formats that are verified: their names, and whether this machine can run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.forms import ATTENTION_FORMS, FORMER_FORMS, WEIGHT_FORMATS, Form

DEFAULT_FORMATS = "fp32,dq8r"


@dataclass(frozen=True)
class Format:
    """A format by the name that the user gave: weights, or weights:attention. Without an `attention` it is the fastest
    one for the variant."""

    name: str
    weights: str
    attention: str | None

    def form(self, variant: str) -> Form:
        return Form.named(self.weights, self.attention) if self.attention else Form.fastest(variant, self.weights)


REFERENCE = Format("fp32", "fp32", "decomposed")
"""What each format is compared with."""


def formats(names: str) -> list[Format]:
    """The formats of a list with commas, each once. Raises InvalidRequest for a name that is none."""
    found: dict[str, Format] = {}
    for name in (each.strip() for each in names.split(",")):
        weights, _, attention = name.partition(":")
        try:
            format_ = Format(name, weights, FORMER_FORMS.get(attention, attention) or None)
            format_.form("gen")
            format_.form("stream")
        except ValueError as error:
            raise InvalidRequest(
                f"{name!r} is no format ({error}): give {', '.join(WEIGHT_FORMATS)}, and behind it"
                f" :{', :'.join(ATTENTION_FORMS)} for a form of attention."
            ) from None
        found[name] = format_
    return list(found.values())


def needs_gpu(form: Form) -> bool:
    return form.device != "cpu" or not form.runs_on_cpu


def lacking(form: Form, providers: Sequence[str]) -> str:
    """Why this machine cannot run the form, whose ONNX Runtime has these `providers`; empty if it can."""
    if needs_gpu(form) and "CUDAExecutionProvider" not in providers:
        why = "it is ONNX Runtime's operator on CUDA" if form.device != "cpu" else "no CPU provider multiplies bf16"
        return f"it needs a GPU ({why}), and the ONNX Runtime here knows none"
    return ""
