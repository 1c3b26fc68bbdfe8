"""The Triton model repository around an exported guard: each model's model.py, and config.pbtxt made from `wire`.

`python -m qwen3guard_export.repository [FOLDER]` writes the config.pbtxt files of the committed repository;
with `--check` it fails where they differ from `wire`.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from google.protobuf import text_format
from qwen3guard_contract import wire
from qwen3guard_contract.layout import GUARDS, VERSION
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.parameters import IDLE_S, PARAMETERS
from qwen3guard_contract.wire import Model, Tensor
from tritonclient.grpc import model_config_pb2

STREAM_BATCH = 16
SEQUENCES = 16384
"""The most sequences that Triton follows at once. It keeps each until it ends or was idle for IDLE_S, perhaps long
after the model gave its slot to another. A sequence beyond this number waits without an answer, so it is far above the
number of slots."""
HEADER = "# Written from wire.py by qwen3guard_export.repository; `make check` fails where it has drifted.\n"

_TYPES = {
    "BYTES": model_config_pb2.TYPE_STRING,
    "INT64": model_config_pb2.TYPE_INT64,
    "FP32": model_config_pb2.TYPE_FP32,
    "BOOL": model_config_pb2.TYPE_BOOL,
}


def skeleton() -> Path:
    """The model repository of this checkout, or of the installed distribution: each model's model.py, without
    weights."""
    checkout = Path(__file__).parents[2] / "model_repository"
    installed = Path(sysconfig.get_path("data")) / "share" / "qwen3guard-triton" / "model_repository"
    return checkout if checkout.is_dir() else installed


def place_models(output: Path, manifest: Manifest) -> None:
    """Writes the models that serve `manifest`'s variant into `output`: config.pbtxt, model.py and version folders."""
    for model in GUARDS[manifest.variant].all:
        version = output / model.name / VERSION
        version.mkdir(parents=True, exist_ok=True)
        (output / model.name / "config.pbtxt").write_text(config(model))
        code = skeleton() / model.name / VERSION / "model.py"
        if code.is_file() and code.resolve() != (version / "model.py").resolve():
            shutil.copyfile(code, version / "model.py")


def config(model: Model) -> str:
    """The text of `model`'s config.pbtxt."""
    message = model_config_pb2.ModelConfig(name=model.name, max_batch_size=_batch(model))
    for tensor in model.inputs:
        message.input.add(
            name=tensor.name,
            data_type=_TYPES[tensor.dtype],
            dims=tensor.dims,
            optional=tensor.optional,
            allow_ragged_batch=tensor.ragged and not model.steps,
        )
    for tensor in model.outputs:
        message.output.add(name=tensor.name, data_type=_TYPES[tensor.dtype], dims=tensor.dims)
    if model.steps:
        message.platform = "ensemble"
        for step in model.steps:
            _add_step(message, model, step)
    else:
        message.backend = "python"
        message.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    for name, value in PARAMETERS.get(model.name, {}).items():
        message.parameters[name].string_value = value
    if model is wire.STREAM_GUARD:
        message.sequence_batching.max_sequence_idle_microseconds = IDLE_S * 1_000_000
        message.sequence_batching.oldest.max_candidate_sequences = SEQUENCES
    text = str(text_format.MessageToString(message))
    return HEADER + text.replace("  value {\n  }", '  value {\n    string_value: ""\n  }')


def _batch(model: Model) -> int:
    """The model's max_batch_size: Triton batches requests of one row each for stream_guard alone."""
    return STREAM_BATCH if model is wire.STREAM_GUARD else 1


def _add_step(message: model_config_pb2.ModelConfig, model: Model, step: Model) -> None:
    def same_names(tensors: Iterable[Tensor]) -> dict[str, str]:
        return {tensor.name: tensor.name for tensor in tensors}

    used = {*model.outputs, *(tensor for each in model.steps for tensor in each.inputs)}
    added = message.ensemble_scheduling.step.add(model_name=step.name, model_version=-1)
    added.input_map.update(same_names(step.inputs))
    added.output_map.update(same_names(tensor for tensor in step.outputs if tensor in used))


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    folders = [argument for argument in arguments if not argument.startswith("-")]
    root = Path(folders[0]) if folders else skeleton()
    drifted = []
    for model in wire.MODELS:
        path = root / model.name / "config.pbtxt"
        if check and (not path.is_file() or path.read_text() != config(model)):
            drifted.append(str(path))
        elif not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(config(model))
    for name in drifted:
        print(f"{name} differs from wire.py; run python -m qwen3guard_export.repository", file=sys.stderr)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
