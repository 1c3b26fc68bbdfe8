"""`qwen3guard export`: a checkpoint becomes a model repository. Needs the extra `export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from qwen3guard_contract.errors import InvalidRequest, ServeError
from qwen3guard_contract.extras import how_to_install
from qwen3guard_contract.forms import ATTENTION_FORMS, FORMER_FORMS, WEIGHT_FORMATS, Form

from qwen3guard_apps.argument_types import positive
from qwen3guard_apps.cli.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model repository to fill")
    parser.add_argument(
        "--weights",
        choices=WEIGHT_FORMATS,
        help="fp32 is exact, dq8r fast on CPUs, fp16 and bf16 are for GPUs (default: fp32, with --tensorrt and paged"
        " attention fp16)",
    )
    parser.add_argument(
        "--attention",
        type=lambda name: FORMER_FORMS.get(name, name),
        choices=ATTENTION_FORMS,
        help="how keys and values are kept and read: int8 takes a quarter of the memory, portable is standard ONNX,"
        " paged is for ONNX Runtime on CUDA, and paged_half has the residual stream in two bytes too (default: int8 for"
        " Stream in dq8r, portable in fp16 and bf16, else decomposed)",
    )
    parser.add_argument("--tensorrt", action="store_true", help="build a TensorRT engine too, of fp16 or bf16")
    parser.add_argument(
        "--slot-tokens",
        type=positive(int),
        default=2048,
        metavar="N",
        help="how many tokens a slot of the engine holds (default: %(default)s)",
    )
    parser.add_argument("--via", choices=("optimum",), help="Gen only: Optimum's own exporter, into a plain folder")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a folder, or a hub id such as Qwen/Qwen3Guard-Gen-0.6B or modelscope:Qwen/Qwen3Guard-Gen-0.6B",
    )
    parser.add_argument(
        "--hub",
        choices=("huggingface", "modelscope"),
        default="huggingface",
        help="where a hub id without a prefix is looked for; HF_ENDPOINT names a mirror (default: %(default)s)",
    )
    parser.add_argument(
        "--revision", metavar="NAME", help="a branch, a tag or a commit of the hub's model (default: the hub's own)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Raises ServeError where the extra is not installed, and what `export` or `export_with_optimum` raises."""
    try:
        from qwen3guard_export import export
        from qwen3guard_export.checkpoint.sources import on_hub
        from qwen3guard_export.proof.optimum import export_with_optimum
        from qwen3guard_export.repository import place_models
    except ImportError as missing:
        raise ServeError(f"{missing.name} is not installed: {how_to_install('export')}.") from None
    source = on_hub(arguments.checkpoint, arguments.hub)
    if arguments.via == "optimum":
        export_with_optimum(source, arguments.output, revision=arguments.revision, say=say)
        return
    is_for_gpus = arguments.tensorrt or (arguments.attention or "").startswith("paged")
    weights = arguments.weights or ("fp16" if is_for_gpus else "fp32")
    try:
        if arguments.attention:
            Form.named(weights, arguments.attention)
    except ValueError as error:
        raise InvalidRequest(f"There is no such export: {error}.") from None
    manifest = export(
        source,
        arguments.output,
        revision=arguments.revision,
        weights=weights,
        attention=arguments.attention,
        tensorrt=arguments.tensorrt,
        slot_tokens=arguments.slot_tokens,
        say=say,
    )
    place_models(arguments.output, manifest)
    if manifest.notice:
        say(f"note: {manifest.notice}")
