"""From a checkpoint to the version folders that the server loads: made in a staging folder, proved, moved into place.

    gen_guard/1, stream_guard/1           the graph, its data, its manifest, the tokenizer's and model's JSON
    guard_tokenizer/1, stream_tokenizer/1 the manifest and the same JSON

Other files in those folders (model.py, config.pbtxt) are not touched.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from qwen3guard_contract.errors import CorruptFile, EngineError
from qwen3guard_contract.forms import Form
from qwen3guard_contract.layout import GUARDS
from qwen3guard_contract.manifest import MANIFEST, Engine, Manifest
from qwen3guard_contract.slots import capacity_for

from qwen3guard_export.balance.balance import balance
from qwen3guard_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qwen3guard_export.graph.attention import kv_caches
from qwen3guard_export.graph.write import write_graph
from qwen3guard_export.proof.canary import longest
from qwen3guard_export.proof.parity import Proof, prove
from qwen3guard_export.proof.texts import around_text, proof_rows
from qwen3guard_export.tensorrt import SLOT_TOKENS, build, check_can_build

_STAGING = ".export-"


def export(
    checkpoint: str,
    output: Path,
    *,
    revision: str | None = None,
    weights: str = "fp32",
    attention: str | None = None,
    tensorrt: bool = False,
    slot_tokens: int = SLOT_TOKENS,
    say: Callable[[str], None],
) -> Manifest:
    """Exports `checkpoint` (a folder, or a model of a hub, at `revision`) into the model repository `output`.

    Returns the manifest.
    `weights` is one of WEIGHT_FORMATS, and `attention` one of ATTENTION_FORMS or None for the fastest (ValueError for
    another). With `tensorrt` it builds an engine too, whose slots hold `slot_tokens`. `say` gets a line for each stage.
    Raises a CheckpointError (ParityError if the graph does not agree with the checkpoint, EngineError if no engine can
    be built), or OSError if a file cannot be written; `output` is then unchanged.
    """
    # The variant is known after the checkpoint is read, but an engine that cannot be built is refused before.
    requested = Form.named(weights, attention) if attention else Form.fastest("gen", weights)
    if tensorrt:
        check_can_build(requested)
    say(f"reading {checkpoint}")
    opened = open_checkpoint(checkpoint, revision)
    architecture = opened.architecture
    form = requested if attention else Form.fastest(architecture.variant, weights)
    models = GUARDS[architecture.variant]
    model, tokenizer = models.guard_folder(output), models.tokenizer_folder(output)
    if tensorrt:
        _check_slot(slot_tokens, opened)
    with _staging(model.parent) as staging:
        rows = proof_rows(opened.folder, architecture.context)
        if form.has_integers:
            say("balancing its channels for eight bits")
        balanced = balance(opened, rows, weights=form.has_integer_weights, kv=form.has_integer_kv)
        say(f"writing the {architecture.variant} graph of {architecture.layers} layers in {form}")
        write_graph(balanced, staging, form)
        say("proving it against the checkpoint in numpy")
        proof = prove(staging, balanced, form, rows, original=opened)
        say(
            f"proved: each half of a layer is within {proof.figures['layer_worst']:.1e} of numpy's;"
            f" the logits are within {proof.figures['fp32_max']:.1e} of float32's, as a part of their scale"
        )
        engine = None
        if tensorrt:
            say("building the TensorRT engine")
            kv, capacity = kv_caches(form, architecture), capacity_for(min(architecture.context, slot_tokens))
            engine = build(staging, architecture.variant, kv, capacity)
            say(f"built by {engine.package} {engine.version} for {', '.join(engine.compute_capabilities)}")
        for path in opened.carried:
            shutil.copyfile(path, staging / path.name)
        say("hashing the files")
        manifest = _manifest(opened, form, proof, engine, staging=staging)
        manifest.write(staging)
        _place(staging, tokenizer, [path.name for path in opened.carried], keep=True)
        _place(staging, model, list(manifest.sha256), keep=False)
    say(f"exported to {model.parent} and {tokenizer.parent}")
    return manifest


def _check_slot(slot_tokens: int, checkpoint: Checkpoint) -> None:
    """Raises EngineError if the template alone, with an answer, is longer than a slot."""
    needed = longest(around_text(checkpoint.folder))
    if slot_tokens < min(needed, checkpoint.architecture.context):
        raise EngineError(f"A slot of {slot_tokens} tokens cannot hold a conversation: the template needs {needed}.")


@contextmanager
def _staging(model: Path) -> Iterator[Path]:
    """Yields a folder inside `model`, on the same disk; its name is not a number, so Triton takes it for no version.

    It is removed afterwards, with every folder that was created for it and is empty. The staging folders of exports
    that were killed are removed too.
    """
    created = [folder for folder in (model, *model.parents) if not folder.exists()]
    model.mkdir(parents=True, exist_ok=True)
    for leftover in model.glob(f"{_STAGING}*"):
        exporter = leftover.name.removeprefix(_STAGING)
        if exporter == str(os.getpid()) or not Path(f"/proc/{exporter}").exists():
            shutil.rmtree(leftover, ignore_errors=True)
    staging = model / f"{_STAGING}{os.getpid()}"
    try:
        staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in created:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _place(staging: Path, target: Path, names: list[str], *, keep: bool) -> None:
    """Moves the files `names` and the manifest into `target`, or copies them with `keep`.

    Files that only the former manifest names are removed. The manifest is removed first and placed last, so a folder
    with a manifest holds a complete export.
    """
    target.mkdir(parents=True, exist_ok=True)
    former = _former_names(target)
    (target / MANIFEST).unlink(missing_ok=True)
    for name in [*names, MANIFEST]:
        if keep:
            shutil.copyfile(staging / name, staging / f"{name}.copy")
            (staging / f"{name}.copy").replace(target / name)
        else:
            (staging / name).replace(target / name)
    for name in former - set(names):
        (target / name).unlink(missing_ok=True)


def _former_names(target: Path) -> set[str]:
    try:
        return {name for name in Manifest.read(target).sha256 if Path(name).name == name}
    except (OSError, CorruptFile):
        return set()


def _manifest(
    checkpoint: Checkpoint,
    form: Form,
    proof: Proof,
    engine: Engine | None,
    *,
    staging: Path,
) -> Manifest:
    architecture = checkpoint.architecture
    return Manifest(
        variant=architecture.variant,
        source=checkpoint.source,
        weights=form.weights,
        attention=form.attention,
        layers=architecture.layers,
        kv_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        hidden_size=architecture.hidden,
        vocab_size=architecture.vocab,
        context=architecture.context,
        demo=checkpoint.demo,
        parameters=checkpoint.parameters,
        parity=proof.figures,
        canary=proof.canary,
        engine=engine,
        sha256={path.name: _sha256(path) for path in sorted(staging.iterdir())},
        versions={
            "numpy": np.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": ort.__version__,
            "python": platform.python_version(),
            "qwen3guard-triton": _own_version(),
        },
    )


def _own_version() -> str:
    try:
        return metadata.version("qwen3guard-triton")
    except metadata.PackageNotFoundError:
        return "uninstalled"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
