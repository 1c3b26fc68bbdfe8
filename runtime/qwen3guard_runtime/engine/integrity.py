"""Are the files beside a manifest the ones that were exported? A canary need not touch a weight that has changed."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterable
from pathlib import Path

from qwen3guard_contract.errors import CorruptFile, InternalError
from qwen3guard_contract.manifest import Manifest


class ExportedFiles:
    """Those in `folder` that the manifest names, and are there; read once now, and watched from then on.

    ONNX Runtime maps its weights: who writes to the file writes into the running guard. Another file under the same
    name, which is how an export puts it there, does no harm. Raises CorruptFile for a file that was not exported so.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        paths = {folder / name: digest for name, digest in manifest.sha256.items() if (folder / name).is_file()}
        self._opened = [os.open(path, os.O_RDONLY) for path in paths]
        weakref.finalize(self, _close, self._opened)
        self._as_read = self._written()
        for path, digest in paths.items():
            if not is_exported(path, digest):
                raise CorruptFile(f"{path} is not the file that was exported: export the checkpoint again.")

    def check(self) -> None:
        """Raises InternalError where one was written to since: what the guard has just found may be wrong."""
        if self._written() != self._as_read:
            raise InternalError("The guard's files were overwritten while it ran; it has to be started anew.")

    def _written(self) -> list[tuple[int, int]]:
        found = map(os.fstat, self._opened)
        return [(each.st_mtime_ns, each.st_size) for each in found]


def is_exported(path: Path, digest: str) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


def _close(opened: Iterable[int]) -> None:
    for each in opened:
        os.close(each)
