"""What a verification found: the result of each format, what the rule makes of it, and all of it in JSON's types."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from typing import Any

import onnxruntime
from qwen3guard_contract.integer_products import products
from qwen3guard_export.checkpoint.checkpoint import Checkpoint
from qwen3guard_runtime.engine.host import cores

from qwen3guard_apps.verification import outliers
from qwen3guard_apps.verification.comparison import Comparison
from qwen3guard_apps.verification.formats import REFERENCE
from qwen3guard_apps.verification.judgements import Judgements
from qwen3guard_apps.verification.recommendation import Candidate, below, faults, recommended
from qwen3guard_apps.verification.texts import SampleText
from qwen3guard_apps.verification.timing import Timing


@dataclass
class FormatResult:
    """What became of one format. `problem` says why it was not judged; then the rest is None."""

    name: str
    form: str
    problem: str = ""
    parity: dict[str, float] = field(default_factory=dict)
    size: int = 0
    judged: list[Judgements] | None = None
    timing: Timing | None = None
    comparison: Comparison | None = None
    with_transformers: Comparison | None = None


@dataclass(frozen=True)
class Verified:
    """The results of a verification: `outcomes` have the formats in the order in which they were asked for, fp32 first
    if it was not asked for."""

    checkpoint: Checkpoint
    asked: tuple[str, ...]
    texts: list[SampleText]
    left_out: int
    outcomes: list[FormatResult]
    transformers: dict[str, Any]
    weights: dict[str, outliers.Outliers]
    activations: dict[str, dict[str, outliers.Outliers]]
    min_agreement: float

    @property
    def reference(self) -> FormatResult:
        return next(each for each in self.outcomes if each.name == REFERENCE.name)

    def faults(self, outcome: FormatResult) -> list[str]:
        """What speaks against a format, by the rule of `recommendation`."""
        if outcome.comparison is None:
            return [outcome.problem]
        if outcome is self.reference:
            found = outcome.with_transformers
            beside = faults(found, self.min_agreement) if found else []
            return [f"beside transformers {each}" for each in beside]
        return faults(outcome.comparison, self.min_agreement)

    @property
    def recommended(self) -> str | None:
        if self.faults(self.reference):
            return None
        return recommended(
            [
                Candidate(each.name, self.faults(each), each.timing.p50_ms, each.size)
                for each in self.outcomes
                if each.timing
            ]
        )

    @property
    def failures(self) -> list[str]:
        """Why the exit status is not 0: the formats that were asked for and not judged, or agree too rarely."""
        said = []
        for each in self.outcomes:
            if each.comparison is None:
                said.append(f"{each.name} was not judged, since {each.problem}")
            elif each.name in self.asked and (parts := below(each.comparison, self.min_agreement)):
                said.append(f"{each.name} is below {self.min_agreement:g}, since {' and '.join(parts)}")
        return said

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        architecture = self.checkpoint.architecture
        return {
            "checkpoint": {
                "source": self.checkpoint.source,
                "variant": architecture.variant,
                "parameters": self.checkpoint.parameters,
                "layers": architecture.layers,
                "demo": self.checkpoint.demo,
            },
            "machine": {
                "platform": platform.platform(),
                "cores": cores(),
                "onnxruntime": onnxruntime.__version__,
                "products": products(),
            },
            "texts": {"judged": len(self.texts), "left_out": self.left_out},
            "min_agreement": self.min_agreement,
            "formats": {each.name: self._outcome(each) for each in self.outcomes},
            "transformers": self.transformers,
            "outliers": {
                "weights": outliers.as_json(self.weights),
                "activations": {state: outliers.as_json(found) for state, found in self.activations.items()},
            },
            "recommended": self.recommended,
            "failures": self.failures,
        }

    def _outcome(self, each: FormatResult) -> dict[str, Any]:
        return {
            "form": each.form,
            "problem": each.problem,
            "faults": self.faults(each),
            "parity": each.parity,
            "bytes": each.size,
            "time": asdict(each.timing) if each.timing else None,
            "with_fp32": each.comparison.as_dict() if each.comparison else None,
            "with_transformers": each.with_transformers.as_dict() if each.with_transformers else None,
        }
