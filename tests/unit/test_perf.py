"""What measures, as far as no server is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from floor import layer_weights, step_seconds
from qwen3guard_apps.cli.main import main
from qwen3guard_contract.manifest import Manifest
from qwen3guard_export.checkpoint.checkpoint import open_checkpoint


@pytest.mark.parametrize("option", ["--concurrency", "--rate", "--seconds", "--tokens"])
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_loads_of_nothing_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["perf", f"{option}={value}"])
    assert option in capsys.readouterr().err


def test_the_floor_counts_the_layers_weights_and_the_slots_cells(repository: Path) -> None:
    """Of the demo, against its checkpoint's tensors and a slot's arrays."""
    manifest = Manifest.read(repository / "stream_guard" / "1")
    shapes = open_checkpoint("demo/stream").architecture.block_shapes(0)
    matrices = sum(int(np.prod(shape)) for shape in shapes.values() if len(shape) == 2)
    assert layer_weights(manifest) == manifest.layers * matrices
    cells = 2 * manifest.layers * 100 * manifest.kv_heads * manifest.head_dim * 4
    assert step_seconds(manifest, {"read_gb_s": 2.0}, 100) == pytest.approx((layer_weights(manifest) + cells) / 2e9)
