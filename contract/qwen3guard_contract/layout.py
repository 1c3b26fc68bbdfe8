"""The served models that make up a guard, and where a model repository has the files of an export.

Each model NAME has the folder NAME/1. The guard's folder and its tokenizer's both hold the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3guard_contract import wire
from qwen3guard_contract.errors import ExportMissing
from qwen3guard_contract.manifest import MANIFEST, Manifest

Variant = Literal["gen", "stream"]
VERSION = "1"
"""The name of each model's only version folder."""


@dataclass(frozen=True)
class GuardModels:
    """The served models of one variant. `guard` runs the graph; clients call `ensemble`, which runs `tokenizer` and
    `guard`."""

    variant: Variant
    tokenizer: wire.Model
    guard: wire.Model
    ensemble: wire.Model

    @property
    def all(self) -> tuple[wire.Model, ...]:
        """All three; the ensemble is last."""
        return self.tokenizer, self.guard, self.ensemble

    def tokenizer_folder(self, model_repository: Path) -> Path:
        return model_repository / self.tokenizer.name / VERSION

    def guard_folder(self, model_repository: Path) -> Path:
        return model_repository / self.guard.name / VERSION


GEN = GuardModels("gen", wire.GUARD_TOKENIZER, wire.GEN_GUARD, wire.CLASSIFY)
STREAM = GuardModels("stream", wire.STREAM_TOKENIZER, wire.STREAM_GUARD, wire.STREAM_STEP)
GUARDS: dict[Variant, GuardModels] = {models.variant: models for models in (GEN, STREAM)}


def exported_guards(model_repository: Path) -> list[GuardModels]:
    """The guards that have a manifest in `model_repository`, whether or not it can be read."""
    return [models for models in GUARDS.values() if (models.guard_folder(model_repository) / MANIFEST).is_file()]


def exported(model_repository: Path) -> dict[str, Manifest]:
    """The manifest of each guard in `model_repository`, by the name of its ensemble.

    Raises ExportMissing if there is no guard, CorruptFile or ExportOutdated if one cannot be served.
    """
    guards = exported_guards(model_repository)
    if not guards:
        raise ExportMissing(
            f"{model_repository} holds no exported guard: "
            f"run qwen3guard export CHECKPOINT --output {model_repository} first."
        )
    return {models.ensemble.name: Manifest.to_serve(models.guard_folder(model_repository)) for models in guards}
