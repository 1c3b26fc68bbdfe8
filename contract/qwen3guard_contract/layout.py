"""Which models serve a guard, and where a model repository keeps what an export wrote: for each model NAME a folder
NAME/1, with the manifest in those of the guard and of its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3guard_contract import wire
from qwen3guard_contract.errors import ExportMissing
from qwen3guard_contract.manifest import MANIFEST, Manifest

Variant = Literal["gen", "stream"]
VERSION = "1"
"""The one version folder of each model."""


@dataclass(frozen=True)
class GuardModels:
    """The served models of one variant: `guard` holds the graph, and `ensemble` answers for it."""

    variant: Variant
    tokenizer: wire.Model
    guard: wire.Model
    ensemble: wire.Model

    @property
    def all(self) -> tuple[wire.Model, ...]:
        """The ensemble last."""
        return self.tokenizer, self.guard, self.ensemble

    def tokenizer_folder(self, model_repository: Path) -> Path:
        return model_repository / self.tokenizer.name / VERSION

    def guard_folder(self, model_repository: Path) -> Path:
        return model_repository / self.guard.name / VERSION


GEN = GuardModels("gen", wire.GUARD_TOKENIZER, wire.GEN_GUARD, wire.CLASSIFY)
STREAM = GuardModels("stream", wire.STREAM_TOKENIZER, wire.STREAM_GUARD, wire.STREAM_STEP)
GUARDS: dict[Variant, GuardModels] = {models.variant: models for models in (GEN, STREAM)}


def exported_guards(model_repository: Path) -> list[GuardModels]:
    """Those of which `model_repository` holds an export, readable or not."""
    return [models for models in GUARDS.values() if (models.guard_folder(model_repository) / MANIFEST).is_file()]


def exported(model_repository: Path) -> dict[str, Manifest]:
    """The ensembles that can be served from `model_repository`, with their guard's manifest.

    Raises ExportMissing where there is none, CorruptFile or ExportOutdated.
    """
    guards = exported_guards(model_repository)
    if not guards:
        raise ExportMissing(
            f"{model_repository} holds no exported guard: "
            f"run qwen3guard export CHECKPOINT --output {model_repository} first."
        )
    return {models.ensemble.name: Manifest.to_serve(models.guard_folder(model_repository)) for models in guards}
