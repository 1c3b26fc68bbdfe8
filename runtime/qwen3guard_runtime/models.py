"""What the served models share: a folder that an export filled, and requests that succeed or fail each alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from qwen3guard_client.errors import ExportMissing, GuardError, TokenizerMismatch
from qwen3guard_client.manifest import MANIFEST, Manifest

from qwen3guard_runtime.chat import ChatTemplate
from qwen3guard_runtime.request import Outputs, Request


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the guard in `folder`. Raises ExportMissing, CorruptFile, ExportOutdated, or TokenizerMismatch if
    the tokenizer there is not the one that the guard was exported with."""
    if not (folder / MANIFEST).is_file():
        raise ExportMissing(f"{folder} holds no exported guard; run qwen3guard export first.")
    manifest = Manifest.to_serve(folder)
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file() or sha256(tokenizer.read_bytes()).hexdigest() != manifest.sha256[tokenizer.name]:
        raise TokenizerMismatch(f"{tokenizer} is not the tokenizer that the guard was exported with.")
    return manifest


class TokenizerModel(ABC):
    """A stateless model: each request to its token ids, or its error."""

    def __init__(self, folder: Path) -> None:
        self._context = read_manifest(folder).context
        self._template = ChatTemplate.load(folder)

    def handle(self, requests: Sequence[Request]) -> list[Outputs | GuardError]:
        return [self._try(request) for request in requests]

    def _try(self, request: Request) -> Outputs | GuardError:
        try:
            return self._one(request)
        except GuardError as error:
            return error

    @abstractmethod
    def _one(self, request: Request) -> Outputs: ...
