"""The base of both tokenizer models, and the check of an export's manifest and text files that all models make."""

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

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
"""The files that a tokenizer, its template and the end of an answer are read from, if they exist."""


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of the guard in `folder`.

    Raises ExportMissing, CorruptFile or ExportOutdated, and TokenizerMismatch if the tokenizer there is not the one
    that the guard was exported with.
    """
    if not (folder / MANIFEST).is_file():
        raise ExportMissing(f"{folder} holds no exported guard; run qwen3guard export first.")
    manifest = Manifest.to_serve(folder)
    for name in foreign_files(folder, manifest):
        raise TokenizerMismatch(f"{folder / name} is not of the export that lies there: remove it.")
    for name, digest in manifest.texts.items():
        if not (folder / name).is_file() or not is_exported(folder / name, digest):
            raise TokenizerMismatch(f"{folder / name} is not the file that the guard was exported with.")
    if "tokenizer.json" not in manifest.sha256:
        raise TokenizerMismatch(f"{folder} has no tokenizer.json.")
    return manifest


def foreign_files(folder: Path, manifest: Manifest) -> list[str]:
    """The names of TEXT_FILES in `folder` that are not of its export, although they would be read."""
    return [name for name in TEXT_FILES if name not in manifest.sha256 and (folder / name).is_file()]


class TokenizerModel(ABC):
    """A stateless model that turns each request into token ids, or into its error."""

    guard: ClassVar[Model]
    """The model that takes the ids."""

    def __init__(self, folder: Path) -> None:
        """Raises what `read_manifest` raises, and TokenizerMismatch if the guard in the same repository is of another
        export."""
        manifest = read_manifest(folder)
        guard_folder = folder.parents[1] / self.guard.name / folder.name
        if (guard_folder / MANIFEST).is_file() and Manifest.read(guard_folder).texts != manifest.texts:
            raise TokenizerMismatch(f"{folder} and {guard_folder} are of two exports: export the checkpoint again.")
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
    def _outputs(self, request: Request) -> Outputs:
        """The outputs of one request. Raises GuardError."""
