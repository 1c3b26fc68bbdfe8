"""Optimum's own exporter, for Gen alone: an interoperable baseline, and a second oracle for our graphs.

This module alone needs the optional package optimum-onnx, and with it torch.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
from qwen3guard_contract.errors import ParityError, WrongArchitecture
from qwen3guard_contract.manifest import GEN_OUTPUTS, GRAPH

from qwen3guard_export.checkpoint.checkpoint import Architecture, Checkpoint, open_checkpoint
from qwen3guard_export.checkpoint.weight_files import Array, FloatArray
from qwen3guard_export.proof.parity import FP32_BOUND
from qwen3guard_export.proof.reference import Tokens, reference_logits


class OptimumMissing(ImportError):
    """optimum-onnx is not installed."""


def export_with_optimum(
    checkpoint: str, output: Path, *, revision: str | None = None, say: Callable[[str], None] = lambda _: None
) -> dict[str, float]:
    """Writes Optimum's float32 graph of a Gen checkpoint into the folder `output`, and returns its parity figure.

    The graph has a KV cache that it concatenates. Raises FileExistsError unless `output` is missing or empty,
    OptimumMissing, or a CheckpointError (WrongArchitecture for Stream, which Optimum does not know; ParityError if the
    logits differ from the checkpoint's by more than FP32_BOUND of their scale); `output` is then not made.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty folder")
    opened = open_checkpoint(checkpoint, revision)
    if opened.architecture.variant != "gen":
        raise WrongArchitecture(
            "Optimum exports Qwen3Guard-Gen only; export a Stream checkpoint without --via optimum."
        )
    try:
        from optimum.exporters.onnx import main_export
    except ImportError as error:
        raise OptimumMissing("optimum-onnx is not installed: pip install optimum-onnx==0.1.0") from error
    staging = output.with_name(f".{output.name}.export-{os.getpid()}")
    try:
        say("exporting with Optimum")
        with _quiet():
            main_export(
                os.fspath(opened.folder),
                output=staging,
                task="text-generation-with-past",
                dtype="fp32",
                device="cpu",
                trust_remote_code=False,
                do_validation=False,
            )
        say("proving it against the checkpoint in numpy")
        figures = _prove(staging, opened)
        if output.is_dir():
            output.rmdir()
        staging.rename(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return figures


def optimum_logits(folder: Path, architecture: Architecture, tokens: Tokens) -> FloatArray:
    """The logits float32 [tokens, vocab] of Optimum's graph in `folder`, with an empty cache."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(os.fspath(folder / GRAPH), options, providers=["CPUExecutionProvider"])
    empty = np.zeros((1, architecture.kv_heads, 0, architecture.head_dim), np.float32)
    feeds: dict[str, Array] = {graph_input.name: empty for graph_input in session.get_inputs()}
    feeds["input_ids"] = tokens[None]
    feeds["attention_mask"] = np.ones((1, len(tokens)), np.int64)
    if "position_ids" in feeds:
        feeds["position_ids"] = np.arange(len(tokens), dtype=np.int64)[None]
    logits: FloatArray = session.run([GEN_OUTPUTS[0]], feeds)[0][0]
    return logits


def _prove(folder: Path, checkpoint: Checkpoint) -> dict[str, float]:
    tokens = np.random.default_rng(0).integers(0, checkpoint.architecture.vocab, 9)
    expected = reference_logits(checkpoint, [tokens])[0][GEN_OUTPUTS[0]]
    logits = optimum_logits(folder, checkpoint.architecture, tokens)
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not difference <= FP32_BOUND:
        raise ParityError(
            f"Optimum's graph differs from the checkpoint by {difference:.2e} of the logits' scale;"
            f" at most {FP32_BOUND:.0e} is allowed."
        )
    return {"one_pass": difference}


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides warnings and log lines below ERROR, which are about torch's tracing of transformers, not this export."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
