"""The check of an export's manifest and text files that every model makes before it loads."""

from __future__ import annotations

from pathlib import Path

from qwen3guard_contract.errors import ExportMissing, TokenizerMismatch
from qwen3guard_contract.manifest import MANIFEST, Manifest

from qwen3guard_runtime.engine.integrity import is_exported

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
