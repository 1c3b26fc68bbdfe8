"""A stream that servers are killed under, and what must be the same after it."""

from __future__ import annotations

import numpy as np
from qwen3guard_client import TokenVerdict

from support.texts import TEXTS

PROMPT = "How do I bake bread?"
TEXT = "".join(TEXTS[:6])
TIMEOUT_S = 60.0


def same(one: tuple[TokenVerdict, ...], other: tuple[TokenVerdict, ...]) -> None:
    def shown(verdicts: tuple[TokenVerdict, ...]) -> list[object]:
        return [(each.position, each.end, each.severity, each.strict, each.loose) for each in verdicts]

    assert shown(one) == shown(other)
    first, second = ([list(token.severity_probabilities.values()) for token in verdicts] for verdicts in (one, other))
    np.testing.assert_allclose(first, second, atol=1e-4)
