"""What PyTorch and transformers make of a checkpoint: the oracle, sharing no line with the export."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from qwen3guard_apps.verification.transformers_guard import TransformersGuard


class Oracle(TransformersGuard):
    """A checkpoint's folder in float32."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # the workers share the cores


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """max |found - expected| over max |expected|, the worst of the outputs."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, values in expected.items():
        assert found[name].shape == values.shape
        worst = max(worst, float(np.abs(found[name] - values).max() / np.abs(values).max()))
    return worst
