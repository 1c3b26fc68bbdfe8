"""Weights of which some are read otherwise than they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from qwen3guard_export.checkpoint.weight_files import WeightFiles

Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Changed(WeightFiles):
    """Weights of which some are read otherwise than they are."""

    changes: dict[str, Change]

    def float32(self, name: str) -> np.ndarray:
        found = super().float32(name)
        return np.ascontiguousarray(self.changes[name](found)) if name in self.changes else found
