"""Compares what two guards say about the same texts: how often they agree, and how far their probabilities are apart.
Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.labels import RISK_ORDER

from qwen3guard_apps.evaluation.intervals import wilson
from qwen3guard_apps.evaluation.judged import MODES
from qwen3guard_apps.verification.judgements import Judgements
from qwen3guard_apps.verification.texts import SampleText

FIRM = 0.2
"""A label is firm where the reference prefers its level to the next one by more than this."""
MOST_LISTED = 20
"""So many of the changed labels are listed, the firmest first."""
GROUPS: dict[str, Callable[[SampleText], str]] = {
    "set": lambda text: text.set,
    "language": lambda text: text.language,
    "kind": lambda text: text.kind,
}


@dataclass(frozen=True)
class Share:
    """`part` of `whole`, with Wilson's 95 % interval. Of nothing it has no value."""

    part: int
    whole: int

    @classmethod
    def of(cls, values: Iterable[bool]) -> Share:
        counted = list(map(bool, values))
        return cls(sum(counted), len(counted))

    @property
    def value(self) -> float | None:
        return self.part / self.whole if self.whole else None

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "part": self.part, "of": self.whole, "interval": wilson(self.part, self.whole)}


@dataclass(frozen=True)
class Comparison:
    """A guard beside a reference, on the same texts.

    `level` counts judgements with the same level. `firm_changed` counts those that changed, of the firm ones.
    `category` counts judgements of which either guard says that they are not Safe, `refusal` those in which either has
    a refusal, `answer` Gen's answers that are the same text. `flags` has the decisions of each mode. `unreadable` has
    the number of answers that could not be read, the reference's first. `errors` are float64 [judgements]: the largest
    difference of a level's probability; `margins` [judgements] are by how much the reference preferred its level.
    """

    texts: int
    level: Share
    firm_changed: Share
    category: Share
    refusal: Share
    flags: dict[str, Share]
    answer: Share
    unreadable: tuple[int, int]
    errors: npt.NDArray[np.float64]
    margins: npt.NDArray[np.float64]
    changed: list[dict[str, Any]]
    groups: dict[str, dict[str, Share]]

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types, with the largest, the mean and the 99th percentile of `errors` in place of them all."""
        return {
            "texts": self.texts,
            "level": self.level.as_dict(),
            "firm_changed": self.firm_changed.as_dict(),
            "category": self.category.as_dict(),
            "refusal": self.refusal.as_dict(),
            "flags": {mode: share.as_dict() for mode, share in self.flags.items()},
            "answer": self.answer.as_dict(),
            "unreadable": {"reference": self.unreadable[0], "found": self.unreadable[1]},
            "probability": {
                "largest": float(self.errors.max(initial=0)),
                "mean": float(self.errors.mean()) if len(self.errors) else 0.0,
                "p99": float(np.quantile(self.errors, 0.99)) if len(self.errors) else 0.0,
            },
            "changed": self.changed,
            "groups": {
                name: {value: share.as_dict() for value, share in values.items()}
                for name, values in self.groups.items()
            },
        }


def compare(texts: Sequence[SampleText], reference: Sequence[Judgements], found: Sequence[Judgements]) -> Comparison:
    """Compares two judgements of each text, of which there must be at least one."""
    pairs = list(zip(reference, found, strict=True))
    exact, other = (np.concatenate([each.risk for each in side]).astype(np.float64) for side in (reference, found))
    same = exact.argmax(axis=1) == other.argmax(axis=1)
    second, first = np.sort(exact, axis=1)[:, -2:].T
    margins = first - second
    owners = np.repeat(np.arange(len(texts)), [len(each.risk) for each in reference])
    return Comparison(
        texts=len(texts),
        level=Share.of(same),
        firm_changed=Share.of(~same[margins > FIRM]),
        category=Share.of(_categories(pairs)),
        refusal=Share.of(one.refusal is two.refusal for one, two in pairs if one.refusal or two.refusal),
        flags={
            mode: Share.of(a == b for one, two in pairs for a, b in zip(one.flags[mode], two.flags[mode], strict=True))
            for mode in MODES
        },
        answer=Share.of(one.answer == two.answer for one, two in pairs if one.answer is not None),
        unreadable=(sum(not one.readable for one in reference), sum(not two.readable for two in found)),
        errors=np.abs(exact - other).max(axis=1),
        margins=margins,
        changed=_changed(texts, owners, exact, other, margins),
        groups=_groups(texts, owners, same),
    )


def _categories(pairs: Sequence[tuple[Judgements, Judgements]]) -> Iterable[bool]:
    """Whether the categories are the same, for each judgement that has any, or that only one guard could say."""
    for one, two in pairs:
        for first, second in zip(one.categories, two.categories, strict=True):
            if first or second or (first is None) != (second is None):
                yield first == second


def _changed(
    texts: Sequence[SampleText],
    owners: npt.NDArray[np.int64],
    exact: npt.NDArray[np.float64],
    other: npt.NDArray[np.float64],
    margins: npt.NDArray[np.float64],
) -> list[dict[str, Any]]:
    """The changed labels with the largest margins: whose they are, and what they were. Nothing of the texts."""
    places = np.flatnonzero(exact.argmax(axis=1) != other.argmax(axis=1))
    places = places[np.argsort(-margins[places], kind="stable")][:MOST_LISTED]
    firsts = np.searchsorted(owners, owners)
    return [
        {
            "set": texts[owners[place]].set,
            "text": texts[owners[place]].number,
            "language": texts[owners[place]].language,
            "kind": texts[owners[place]].kind,
            "judgement": int(place - firsts[place]),
            "reference": RISK_ORDER[int(exact[place].argmax())].value,
            "found": RISK_ORDER[int(other[place].argmax())].value,
            "margin": float(margins[place]),
        }
        for place in map(int, places)
    ]


def _groups(
    texts: Sequence[SampleText], owners: npt.NDArray[np.int64], same: npt.NDArray[np.bool_]
) -> dict[str, dict[str, Share]]:
    """The agreement of levels for each set, language and kind, where there are at least two."""
    found: dict[str, dict[str, Share]] = {}
    for name, value_of in GROUPS.items():
        values = np.array([value_of(text) for text in texts])[owners]
        if len(set(values)) > 1:
            found[name] = {str(value): Share.of(same[values == value]) for value in dict.fromkeys(values) if value}
    return found
