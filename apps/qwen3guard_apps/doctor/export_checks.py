"""Checks of `qwen3guard doctor` that a model repository holds what its manifests describe."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qwen3guard_contract import wire
from qwen3guard_contract.extras import how_to_install
from qwen3guard_contract.layout import VERSION, GuardModels, exported_guards
from qwen3guard_contract.manifest import GRAPH, Manifest
from qwen3guard_runtime.engine.host import memory_bytes
from qwen3guard_runtime.engine.integrity import is_exported
from qwen3guard_runtime.engine.kv_cache import KVCache
from qwen3guard_runtime.exported import foreign_files

from qwen3guard_apps.doctor.findings import Check, Finding

AGAIN = "export the checkpoint again"


def repository_checks(repository: Path) -> Mapping[str, Check]:
    """The checks by name: four for each exported guard, and one of the memory for all."""
    guards = exported_guards(repository)
    if not guards:
        return {"repository": lambda: _nothing(repository)}
    checks: dict[str, Check] = {}
    for guard in guards:
        name, folder = guard.guard.name, guard.guard_folder(repository)
        checks |= {
            f"{name} files": partial(files, name, folder),
            f"{name} tokenizer": partial(tokenizer, guard, repository),
            f"{name} models": partial(models, guard, repository),
            f"{name} engine": partial(engine, name, folder),
        }
    return checks | {"memory": lambda: memory([each.guard_folder(repository) for each in guards])}


def _nothing(repository: Path) -> Iterator[Finding]:
    sentence = f"There is no exported guard in {repository}: run qwen3guard export CHECKPOINT --output {repository}."
    yield Finding("repository", "failed", sentence)


def files(name: str, folder: Path) -> Iterator[Finding]:
    """Compares every file that the manifest names with its sha256, and the graph with the manifest itself."""
    check, manifest = f"{name} files", Manifest.to_serve(folder)
    wrong = [fault for file, digest in manifest.sha256.items() if (fault := _wrong(folder / file, digest))]
    wrong += [] if wrong else _graph_faults(folder / GRAPH, manifest)
    for fault in wrong:
        yield Finding(check, "failed", f"{fault}: {AGAIN}.")
    if not wrong:
        notice = f"; {manifest.notice}" if manifest.notice else ""
        sentence = f"{manifest.source} in {manifest.weights}: {len(manifest.sha256)} files are as exported{notice}."
        yield Finding(check, "ok", sentence)


def _graph_faults(path: Path, manifest: Manifest) -> list[str]:
    """What is wrong with a graph that is as exported. It cannot be read without the export's onnx."""
    try:
        onnx = importlib.import_module("onnx")
    except ImportError:
        return []
    model = onnx.load(path, load_external_data=False)
    inputs = [value.name for value in model.graph.input]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return [] if manifest.describes(inputs, metadata) else [f"{path} is not the graph that its manifest describes"]


def _wrong(path: Path, digest: str) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    return None if is_exported(path, digest) else f"{path} is not what was exported"


def tokenizer(guard: GuardModels, repository: Path) -> Iterator[Finding]:
    """Compares the files of the tokenizer's model with those that the guard was exported with."""
    check, served = f"{guard.guard.name} tokenizer", guard.tokenizer_folder(repository)
    manifest = Manifest.read(guard.guard_folder(repository))
    names = manifest.texts
    wrong = [fault for file, digest in names.items() if (fault := _wrong(served / file, digest))]
    wrong += [f"{served / name} belongs to no export" for name in foreign_files(served, manifest)]
    for fault in wrong:
        yield Finding(check, "failed", f"{fault}: {AGAIN}.")
    if not wrong:
        yield Finding(check, "ok", f"{served.parent.name} has the guard's {len(names)} files.")


def models(guard: GuardModels, repository: Path) -> Iterator[Finding]:
    """Compares config.pbtxt and model.py with this version's, except for what an operator may set."""
    check = f"{guard.guard.name} models"
    try:
        exporter = importlib.import_module("qwen3guard_export.repository")
    except ImportError:
        yield Finding(check, "ok", "Not compared with this version, since the export is not installed here.")
        return
    faults = [finding for model in guard.all for finding in _model(check, model, repository / model.name, exporter)]
    yield from faults
    if not faults:
        yield Finding(check, "ok", f"{', '.join(model.name for model in guard.all)} are of this version.")


def _model(check: str, model: wire.Model, folder: Path, exporter: Any) -> Iterator[Finding]:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    code, original = (root / VERSION / "model.py" for root in (folder, exporter.skeleton() / model.name))
    if not model.steps and (not code.is_file() or (original.is_file() and code.read_bytes() != original.read_bytes())):
        yield Finding(check, "failed", f"{code} is not that of this version: copy {original}, or {AGAIN}.")
    path = folder / "config.pbtxt"
    try:
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, text_format.ParseError) as error:
        yield Finding(check, "failed", f"{path} cannot be read ({type(error).__name__}): {AGAIN}.")
        return
    exported = text_format.Parse(exporter.config(model), model_config_pb2.ModelConfig())
    missing = sorted(set(exported.parameters) - set(config.parameters))
    if missing:
        yield Finding(check, "failed", f"{path} lacks the parameter {missing[0]}: {AGAIN}.")
    for part in ("name", "backend", "platform", "input", "output", "ensemble_scheduling"):
        if getattr(config, part) != getattr(exported, part):
            yield Finding(check, "failed", f"{path} differs from this version in {part}: {AGAIN}.")
            return
    for message in (config, exported):
        message.ClearField("parameters")
    if config != exported:
        yield Finding(
            check, "warning", f"{path} queues or batches in another way than exported: check that you want this."
        )


def engine(name: str, folder: Path) -> Iterator[Finding]:
    """Compares the version that built a guard's TensorRT engine with the one installed; nothing without an engine."""
    check, built = f"{name} engine", Manifest.read(folder).engine
    if built is None:
        return
    try:
        version = importlib.import_module(built.package).__version__
    except ImportError:
        sentence = f"It was built by {built.package}, which is not installed: {how_to_install('tensorrt')}."
        yield Finding(check, "failed", sentence)
        return
    if version != built.version:
        sentence = f"It was built by {built.package} {built.version}, and here is {version}: {AGAIN}, or install that."
        yield Finding(check, "failed", sentence)
    else:
        yield Finding(check, "ok", f"It was built by {built.package} {version}, which is installed.")


def memory(folders: list[Path]) -> Iterator[Finding]:
    """Compares this machine's memory with the weights of all guards and the KV of one whole context."""
    manifests = [(folder, Manifest.read(folder)) for folder in folders]
    weights = sum(
        path.stat().st_size
        for folder, manifest in manifests
        for file in manifest.sha256
        if (path := folder / file).exists()
    )
    kv = max(KVCache.least_bytes(manifest) for _, manifest in manifests)
    available = memory_bytes()
    sentence = f"Weights of {_gib(weights)} and at least {_gib(kv)} of KV, in {_gib(available)} of memory"
    if weights + kv > available:
        yield Finding("memory", "failed", f"{sentence}: they do not fit; export in dq8r, or serve one guard here.")
    elif 2 * weights > available:
        yield Finding("memory", "warning", f"{sentence}: set kv_budget_bytes, whose default is half of the memory.")
    else:
        yield Finding("memory", "ok", f"{sentence}.")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
