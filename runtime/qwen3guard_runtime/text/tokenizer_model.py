"""The base of both tokenizer models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from qwen3guard_contract.errors import GuardError, TokenizerMismatch
from qwen3guard_contract.manifest import MANIFEST, Manifest
from qwen3guard_contract.wire import Model

from qwen3guard_runtime.exported import read_manifest
from qwen3guard_runtime.request import Outputs, Request
from qwen3guard_runtime.text.chat import ChatTemplate


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
