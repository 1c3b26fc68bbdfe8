"""What the served models share: a folder that an export filled, and requests that succeed or fail each alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from qwen3guard_contract.errors import ExportMissing, GuardError, TokenizerMismatch
from qwen3guard_contract.manifest import MANIFEST, Manifest
from qwen3guard_contract.wire import Model

from qwen3guard_runtime.engine.integrity import is_exported
from qwen3guard_runtime.request import Outputs, Request
from qwen3guard_runtime.text.chat import ChatTemplate

READ = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the guard in `folder`. Raises ExportMissing, CorruptFile, ExportOutdated, or TokenizerMismatch if
    the tokenizer there is not the one that the guard was exported with."""
    if not (folder / MANIFEST).is_file():
        raise ExportMissing(f"{folder} holds no exported guard; run qwen3guard export first.")
    manifest = Manifest.to_serve(folder)
    for name in strays(folder, manifest):
        raise TokenizerMismatch(f"{folder / name} is not of the export that lies there: remove it.")
    for name, digest in manifest.texts.items():
        if not (folder / name).is_file() or not is_exported(folder / name, digest):
            raise TokenizerMismatch(f"{folder / name} is not the file that the guard was exported with.")
    if "tokenizer.json" not in manifest.sha256:
        raise TokenizerMismatch(f"{folder} has no tokenizer.json.")
    return manifest


def strays(folder: Path, manifest: Manifest) -> list[str]:
    """Files that a tokenizer or a template would be read from, and that were not exported."""
    return [name for name in READ if name not in manifest.sha256 and (folder / name).is_file()]


class TokenizerModel(ABC):
    """A stateless model: each request to its token ids, or its error. Raises TokenizerMismatch beside another guard."""

    guard: ClassVar[Model]
    """The model that takes the ids."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        beside = folder.parents[1] / self.guard.name / folder.name
        if (beside / MANIFEST).is_file() and Manifest.read(beside).texts != manifest.texts:
            raise TokenizerMismatch(f"{folder} and {beside} are of two exports: export the checkpoint again.")
        self._context = manifest.context
        self._template = ChatTemplate.load(folder)

    def handle(self, requests: Sequence[Request]) -> list[Outputs | GuardError]:
        return [self._try(request) for request in requests]

    def _try(self, request: Request) -> Outputs | GuardError:
        try:
            return self._outputs(request)
        except GuardError as error:
            return error

    @abstractmethod
    def _outputs(self, request: Request) -> Outputs: ...
