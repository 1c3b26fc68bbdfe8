"""Writes the graph of a checkpoint in a form."""

from __future__ import annotations

from pathlib import Path

from qwen3guard_contract.forms import Form
from qwen3guard_contract.manifest import GRAPH, GRAPH_FORM

from qwen3guard_export.checkpoint.checkpoint import Checkpoint
from qwen3guard_export.graph.emitter import Emitter
from qwen3guard_export.graph.graph import Qwen3
from qwen3guard_export.graph.paged import PagedQwen3


def write_graph(checkpoint: Checkpoint, folder: Path, form: Form) -> None:
    """Writes model.onnx and model.onnx.data into `folder`. Raises CorruptFile if a weight cannot be read."""
    qwen3 = PagedQwen3 if form.is_paged else Qwen3
    with Emitter(folder, GRAPH) as graph:
        qwen3(graph, checkpoint, form).emit()
        graph.finish(f"qwen3guard_{checkpoint.architecture.variant}", {GRAPH_FORM: str(form)})
