"""What a model repository holds, checked against its own manifests, as findings of `qwen3guard doctor`."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen3guard_client import wire
from qwen3guard_client.findings import Check, Finding
from qwen3guard_client.manifest import MANIFEST, Manifest

from qwen3guard_runtime.integrity import is_exported
from qwen3guard_runtime.kv_cache import KVCache
from qwen3guard_runtime.models import strays
from qwen3guard_runtime.options import memory_bytes
from qwen3guard_runtime.server import ENSEMBLES

MODELS = {
    "gen_guard": (wire.GUARD_TOKENIZER, wire.GEN_GUARD, wire.CLASSIFY),
    "stream_guard": (wire.STREAM_TOKENIZER, wire.STREAM_GUARD, wire.STREAM_STEP),
}
"""Of each guard: its tokenizer, itself and the ensemble."""
AGAIN = "export the checkpoint again"


def checks(repository: Path) -> Mapping[str, Check]:
    guards = [name for name in ENSEMBLES if (repository / name / "1" / MANIFEST).is_file()]
    if not guards:
        return {"repository": lambda: _nothing(repository)}
    found: dict[str, Check] = {}
    for name in guards:
        folder = repository / name / "1"
        found |= {
            f"{name} files": lambda name=name, folder=folder: files(name, folder),  # type: ignore[misc]
            f"{name} tokenizer": lambda name=name, folder=folder: tokenizer(name, folder, repository),  # type: ignore[misc]
            f"{name} models": lambda name=name: models(name, repository),  # type: ignore[misc]
            f"{name} engine": lambda name=name, folder=folder: engine(name, folder),  # type: ignore[misc]
        }
    return found | {"memory": lambda: memory([repository / name / "1" for name in guards])}


def _nothing(repository: Path) -> Iterator[Finding]:
    said = f"{repository} holds no exported guard: run qwen3guard export CHECKPOINT --output {repository}."
    yield Finding("repository", "failed", said)


def files(name: str, folder: Path) -> Iterator[Finding]:
    """Every file that the manifest names, by its sha256."""
    check, manifest = f"{name} files", Manifest.to_serve(folder)
    wrong = [found for file, digest in manifest.sha256.items() if (found := _wrong(folder / file, digest))]
    for said in wrong:
        yield Finding(check, "failed", f"{said}: {AGAIN}.")
    if not wrong:
        notice = f"; {manifest.notice}" if manifest.notice else ""
        said = f"{manifest.source} in {manifest.weights}: {len(manifest.sha256)} files are as exported{notice}."
        yield Finding(check, "ok", said)


def _wrong(path: Path, digest: str) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    return None if is_exported(path, digest) else f"{path} is not what was exported"


def tokenizer(name: str, folder: Path, repository: Path) -> Iterator[Finding]:
    """The tokenizer's own model works with the files that the guard was exported with."""
    check, served = f"{name} tokenizer", repository / MODELS[name][0].name / "1"
    manifest = Manifest.read(folder)
    names = manifest.texts
    wrong = [found for file, digest in names.items() if (found := _wrong(served / file, digest))]
    wrong += [f"{served / stray} is of no export" for stray in strays(served, manifest)]
    for said in wrong:
        yield Finding(check, "failed", f"{said}: {AGAIN}.")
    if not wrong:
        yield Finding(check, "ok", f"{served.parent.name} has the guard's {len(names)} files.")


def models(name: str, repository: Path) -> Iterator[Finding]:
    """config.pbtxt and model.py are those of this version, but for what an operator may set."""
    check = f"{name} models"
    try:
        exporter = importlib.import_module("qwen3guard_export.repository")
    except ImportError:
        yield Finding(check, "ok", "Not compared with this version, since the export is not installed here.")
        return
    found = [finding for model in MODELS[name] for finding in _model(check, model, repository / model.name, exporter)]
    yield from found
    if not found:
        yield Finding(check, "ok", f"{', '.join(model.name for model in MODELS[name])} are of this version.")


def _model(check: str, model: wire.Model, folder: Path, exporter: Any) -> Iterator[Finding]:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    code, ours = folder / "1" / "model.py", exporter.skeleton() / model.name / "1" / "model.py"
    if not model.steps and (not code.is_file() or (ours.is_file() and code.read_bytes() != ours.read_bytes())):
        yield Finding(check, "failed", f"{code} is not that of this version: copy {ours}, or {AGAIN}.")
    path = folder / "config.pbtxt"
    try:
        here = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, text_format.ParseError) as error:
        yield Finding(check, "failed", f"{path} cannot be read ({type(error).__name__}): {AGAIN}.")
        return
    exported = text_format.Parse(exporter.config(model), model_config_pb2.ModelConfig())
    missing = sorted(set(exported.parameters) - set(here.parameters))
    if missing:
        yield Finding(check, "failed", f"{path} lacks the parameter {missing[0]}: {AGAIN}.")
    for part in ("name", "backend", "platform", "input", "output", "ensemble_scheduling"):
        if getattr(here, part) != getattr(exported, part):
            yield Finding(check, "failed", f"{path} differs from this version in {part}: {AGAIN}.")
            return
    for each in (here, exported):
        each.ClearField("parameters")
    if here != exported:
        yield Finding(check, "warning", f"{path} queues or batches otherwise than exported: see that you mean it.")


def engine(name: str, folder: Path) -> Iterator[Finding]:
    check, built = f"{name} engine", Manifest.read(folder).engine
    if built is None:
        return
    try:
        version = importlib.import_module(built.package).__version__
    except ImportError:
        said = f"It was built by {built.package}, which is not installed: pip install 'qwen3guard-triton[tensorrt]'."
        yield Finding(check, "failed", said)
        return
    if version != built.version:
        said = f"It was built by {built.package} {built.version}, and here is {version}: {AGAIN}, or install that."
        yield Finding(check, "failed", said)
    else:
        yield Finding(check, "ok", f"It was built by {built.package} {version}, which is installed.")


def memory(folders: list[Path]) -> Iterator[Finding]:
    """Weights once, and for streams the KV of one whole context at least; half of the memory is KV's if it may be."""
    manifests = [(folder, Manifest.read(folder)) for folder in folders]
    weights = sum(
        path.stat().st_size
        for folder, manifest in manifests
        for file in manifest.sha256
        if (path := folder / file).exists()
    )
    kv = max(KVCache.least_bytes(manifest) for _, manifest in manifests)
    here = memory_bytes()
    said = f"Weights of {_gib(weights)} and at least {_gib(kv)} of KV, in {_gib(here)} of memory"
    if weights + kv > here:
        yield Finding("memory", "failed", f"{said}: they do not fit; export in dq8r, or serve one guard here.")
    elif 2 * weights > here:
        yield Finding("memory", "warning", f"{said}: set kv_budget_bytes, whose default is half of the memory.")
    else:
        yield Finding("memory", "ok", f"{said}.")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
