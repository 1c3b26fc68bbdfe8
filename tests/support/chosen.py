"""What a Gen graph makes of its logits (`manifest.GEN_CHOICES`), in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from qwen3guard_runtime.engine.runner import Logits


def chosen(logits: npt.NDArray[np.float32], candidates: Sequence[int]) -> Logits:
    """Of logits [asked, vocab], as a graph gives them."""
    exact = logits.astype(np.float64)
    largest = exact.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        logprob = -np.log(np.exp(exact - largest).sum(axis=1, keepdims=True))
        logprob += (0 * exact).sum(axis=1, keepdims=True)
    choices = np.concatenate([exact.argmax(axis=1)[:, None], largest, logprob], axis=1)
    return choices.astype(np.float32), logits[:, list(candidates)]
