"""From levels to decisions: what an operator's strict or loose mode and the debounce make of them."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3guard_client.labels import RiskLevel

DEBOUNCE = 2
"""Flag a token when it and the one before are both not Safe: Qwen3Guard report, arXiv 2510.14276, 4.4."""


def flags(
    before: Sequence[RiskLevel], levels: Sequence[RiskLevel], *, strict: bool, debounce: int = DEBOUNCE
) -> list[bool]:
    """For each of `levels`, whether it ends a run of `debounce` unsafe tokens.

    `before` holds the judged levels of the same response that precede `levels`, oldest first; only the
    last `debounce - 1` matter, so the decision at a token depends on nothing after it.
    """
    run = 0
    decisions = []
    for level in (*before, *levels):
        run = run + 1 if level.is_unsafe(strict=strict) else 0
        decisions.append(run >= debounce)
    return decisions[len(before) :]
