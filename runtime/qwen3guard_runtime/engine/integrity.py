"""Checks that the files beside a manifest are the exported ones. A canary does not find every changed weight."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterable
from pathlib import Path

from qwen3guard_contract.errors import CorruptFile, InternalError
from qwen3guard_contract.manifest import Manifest


class ExportedFiles:
    """The files in `folder` that the manifest names. They are read once, now, and then watched for changes.

    ONNX Runtime maps its weights, so a write to the file changes the running guard. A new file under the same name, as
    an export puts it there, does no harm. Raises CorruptFile for a file that is not the exported one.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        paths = {folder / name: digest for name, digest in manifest.sha256.items() if (folder / name).is_file()}
        self._opened = {os.open(path, os.O_RDONLY): digest for path, digest in paths.items()}
        weakref.finalize(self, _close, list(self._opened))
        self._states = self._read_states()
        for path, digest in paths.items():
            if not is_exported(path, digest):
                raise CorruptFile(f"{path} is not the file that was exported: export the checkpoint again.")

    def check(self) -> None:
        """Raises InternalError if a file has been written to since: the guard's latest results may be wrong.

        A file is read again where only its state has changed: another name or another mode does so, but also a write
        after which the time of the last write was set back.
        """
        states = self._read_states()
        if states == self._states:
            return
        for (file, digest), now, before in zip(self._opened.items(), states, self._states, strict=True):
            if now[:2] != before[:2] or (now != before and not is_exported(Path(f"/proc/self/fd/{file}"), digest)):
                raise InternalError("The guard's files were overwritten while it ran; it has to be started anew.")
        self._states = states

    def _read_states(self) -> list[tuple[int, int, int]]:
        """The time of the last write (ns), the bytes, and the time of the last change of state (ns) of each file."""
        return [(each.st_mtime_ns, each.st_size, each.st_ctime_ns) for each in map(os.fstat, self._opened)]


def is_exported(path: Path, digest: str) -> bool:
    """Whether the file has this SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
