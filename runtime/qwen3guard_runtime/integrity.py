"""Are the files beside a manifest the ones that were exported? A canary need not touch a weight that has changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from qwen3guard_client.errors import CorruptFile
from qwen3guard_client.manifest import Manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Reads each file in `folder` that the manifest names, and is there. Raises CorruptFile for one that differs."""
    for name, digest in manifest.sha256.items():
        path = folder / name
        if path.is_file() and not is_exported(path, digest):
            raise CorruptFile(f"{path} is not the file that was exported: export the checkpoint again.")


def is_exported(path: Path, digest: str) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest
