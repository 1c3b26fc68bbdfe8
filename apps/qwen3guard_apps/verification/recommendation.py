"""Which format is recommended, by one rule. Pure.

A format is good if
    no more than FIRM_CHANGED of the labels that fp32 was sure of have changed, and
    the mean error of a level's probability is at most MEAN_ERROR, and
    the levels and the flags agree with fp32's at least as often as is asked for, and
    no more than UNREADABLE of Gen's answers can no longer be read.
The fastest good format is recommended: by the time of a classification for Gen, of a step for Stream. Within TIE of it,
the smallest one is. fp32 is the reference, so it is good unless it differs from transformers, by the same rule; then
nothing is recommended, since nothing can be said of the others either.

A change of a label that was nearly a tie says little; a change of a firm one says that the format computes something
else. So agreement alone does not decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3guard_apps.verification.comparison import Comparison

FIRM_CHANGED = 0.002
MEAN_ERROR = 0.01
UNREADABLE = 0.01
MIN_AGREEMENT = 0.98
TIE = 0.1
"""Medians of one run on a machine that does other work too differ by as much."""


def faults(found: Comparison, min_agreement: float) -> list[str]:
    """What the rule holds against a format, as parts of a sentence; none if it is good."""
    said = below(found, min_agreement)
    if (found.firm_changed.value or 0) > FIRM_CHANGED:
        said.append(f"{found.firm_changed.part} of {found.firm_changed.whole} firm labels changed")
    if len(found.errors) and found.errors.mean() > MEAN_ERROR:
        said.append(f"a probability is off by {found.errors.mean():.3f} on average")
    before, after = found.unreadable
    if after - before > UNREADABLE * found.texts:
        said.append(f"{after} of {found.texts} answers cannot be read, {before} before")
    return said


def below(found: Comparison, min_agreement: float) -> list[str]:
    """The agreements of level and flags that are less than `min_agreement`: the shares themselves.

    The lower ends of their intervals would measure the number of texts as much as the format: with 300 texts, two
    changed near ties are below 0.98 at the lower end, and with 100 texts a perfect format is.
    """
    shares = {"levels": found.level} | {f"{mode} flags": share for mode, share in found.flags.items()}
    return [
        f"{name} agree in {share.value:.4f} of {share.whole:,}"
        for name, share in shares.items()
        if share.value is not None and share.value < min_agreement
    ]


@dataclass(frozen=True)
class Candidate:
    """A format that ran: its name, what speaks against it, its milliseconds and its bytes."""

    name: str
    faults: Sequence[str]
    ms: float
    size: int


def recommended(candidates: Sequence[Candidate]) -> str | None:
    """The name of the format that the rule recommends, or None if none is good."""
    good = [each for each in candidates if not each.faults]
    if not good:
        return None
    fastest = min(each.ms for each in good)
    return min((each for each in good if each.ms <= fastest * (1 + TIE)), key=lambda each: each.size).name
