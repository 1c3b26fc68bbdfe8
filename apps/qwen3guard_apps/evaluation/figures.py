"""All measures of one guard on labelled rows, as plain values for JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.labels import Category
from qwen3guard_contract.thresholds import Thresholds

from qwen3guard_apps.evaluation import curves
from qwen3guard_apps.evaluation.hits import hits
from qwen3guard_apps.evaluation.intervals import SEED, bootstrap
from qwen3guard_apps.evaluation.judged import MODES, SCORES, JudgedRows
from qwen3guard_apps.evaluation.metrics import Confusion, measured, rate

FALSE_POSITIVE_RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""The rates that get a row in the table of thresholds."""


def figures(judged: JudgedRows) -> dict[str, Any]:
    measures: dict[str, Any] = {"decisions": both_modes(judged.unsafe, judged)}
    if any(answer.upstream for answer in judged.answers):
        measures["upstream_rule"] = _upstream(judged)
    if judged.both_classes:
        measures["curves"] = {name: _curve(judged.scores(field), judged.unsafe) for name, field in SCORES.items()}
    if located := _hits(judged):
        measures["hits"] = located
    measures["categories"] = _categories(judged)
    measures["groups"] = {name: _groups(judged, values) for name, values in judged.groups.items()}
    return measures


def both_modes(unsafe: npt.NDArray[np.bool_], judged: JudgedRows, chosen: Any = slice(None)) -> dict[str, Any]:
    """The confusion of the guard's decisions with `unsafe` [rows], strict and loose, on the rows `chosen`."""
    return {mode: Confusion.of(unsafe[chosen], judged.decisions(mode)[chosen]).as_dict() for mode in MODES}


def bounds(judged: JudgedRows, failed: Sequence[bool]) -> dict[str, Any]:
    """The confusion with the rows that could not be judged, whose labels are `failed`: as if the guard had let all of
    them pass (`missed`), and as if it had blocked all (`blocked`)."""
    unsafe = np.concatenate([judged.unsafe, np.array(failed, np.bool_)])
    both = {}
    for name, flag in (("missed", False), ("blocked", True)):
        flags = np.full(len(failed), flag)
        both[name] = {
            mode: Confusion.of(unsafe, np.concatenate([judged.decisions(mode), flags])).as_dict() for mode in MODES
        }
    return both


def _upstream(judged: JudgedRows) -> dict[str, Any]:
    """The confusion by upstream's rule. A prompt has one judgement and no run of tokens, so its own decision counts."""
    rows = [answer.upstream or answer.decisions for answer in judged.answers]
    flagged = {mode: np.array([row[mode] for row in rows], np.bool_) for mode in MODES}
    return {mode: Confusion.of(judged.unsafe, flagged[mode]).as_dict() for mode in MODES}


def _curve(scores: npt.NDArray[np.float64], unsafe: npt.NDArray[np.bool_]) -> dict[str, Any]:
    curve = curves.curve(scores, unsafe)
    table = []
    for wanted in FALSE_POSITIVE_RATES:
        threshold = curves.choose(scores, unsafe, wanted)
        table.append({"wanted": wanted, "threshold": threshold} | Confusion.of(unsafe, scores > threshold).as_dict())
    return {
        "area": measured(curve.area, bootstrap(curves.area, scores, unsafe)),
        "average_precision": measured(curve.average_precision, bootstrap(curves.average_precision, scores, unsafe)),
        "thresholds": table,
    }


def _hits(judged: JudgedRows) -> dict[str, Any]:
    located = [
        answer.distances
        for answer, unsafe in zip(judged.answers, judged.unsafe, strict=True)
        if unsafe and answer.distances is not None
    ]
    return {name: hits([row[name] for row in located]) for name in (*MODES, "upstream")} if located else {}


_NAMES = {category.value for category in Category}


def _categories(judged: JudgedRows) -> dict[str, Any]:
    """How many unsafe rows of each labelled category are flagged, and how many of those the guard names so."""
    categories = {}
    for name in sorted({name for names in judged.labelled for name in names}):
        rows = [
            answer
            for answer, names, unsafe in zip(judged.answers, judged.labelled, judged.unsafe, strict=True)
            if unsafe and name in names
        ]
        if rows:
            categories[name] = {mode: _recall(rows, mode, name) for mode in MODES}
    return categories


def _recall(rows: Sequence[Any], mode: str, name: str) -> dict[str, Any]:
    """A category that the guard does not have is never named, so it has no such rate."""
    flagged = [answer for answer in rows if answer.decisions[mode]]
    named = sum(name in answer.named(mode) for answer in flagged)
    return {"recall": rate(len(flagged), len(rows)), "named": rate(named, len(flagged) if name in _NAMES else 0)}


def _groups(judged: JudgedRows, values: Sequence[str]) -> dict[str, Any]:
    array = np.array(values)
    return {
        value: {"rows": int((array == value).sum())} | both_modes(judged.unsafe, judged, array == value)
        for value in sorted(set(values))
    }


def propose(judged: JudgedRows, wanted: float, *, per_category: bool) -> tuple[Thresholds, dict[str, Any]]:
    """Thresholds that flag at most the share `wanted` of the safe rows, and the rates that they give.

    With `per_category`, each category with at least 1 / `wanted` safe rows has a threshold of its own, and the default
    is for the others. `held_out` has the rates on half of the rows, by thresholds chosen on the other half. Raises
    InvalidRequest where no row is labelled safe.
    """
    everything = np.ones(len(judged.unsafe), np.bool_)
    halves = half(judged)
    thresholds = _fit(judged, everything, wanted, per_category)
    outcome = thresholds.as_dict() | {"wanted": wanted, "rows": _outcome(judged, everything, thresholds)}
    if (~judged.unsafe[halves]).any():
        outcome["held_out"] = _outcome(judged, ~halves, _fit(judged, halves, wanted, per_category))
    return thresholds, outcome


def half(judged: JudgedRows) -> npt.NDArray[np.bool_]:
    """Half of the safe rows and half of the unsafe ones, bool [rows], by lot with a fixed seed. Rows of the same
    conversation are on the same side."""
    chosen = np.zeros(len(judged.unsafe), np.bool_)
    members: dict[str, list[int]] = {}
    for number, text in enumerate(judged.texts):
        members.setdefault(text, []).append(number)
    groups = list(members.values())
    missing = {label: (judged.unsafe == label).sum() / 2 for label in (False, True)}
    for place in np.random.default_rng(SEED).permutation(len(groups)):
        rows = groups[place]
        label = bool(judged.unsafe[rows[0]])
        if missing[label] > 0:
            chosen[rows] = True
            missing[label] -= len(rows)
    return chosen


def _fit(judged: JudgedRows, chosen: npt.NDArray[np.bool_], wanted: float, per_category: bool) -> Thresholds:
    safe = chosen & ~judged.unsafe
    if not safe.any():
        raise InvalidRequest("There are no rows labelled safe to choose a threshold on.")
    scores = judged.scores("risk")
    own = {}
    rest = chosen
    for category in Category if per_category else ():
        named = chosen & np.array([category.value in answer.categories for answer in judged.answers], np.bool_)
        if (named & safe).sum() * wanted >= 1:
            own[category] = curves.choose(scores[named], judged.unsafe[named], wanted)
            rest = rest & ~named
    rest = rest if (rest & safe).any() else chosen
    return Thresholds(curves.choose(scores[rest], judged.unsafe[rest], wanted), own)


def _outcome(judged: JudgedRows, chosen: npt.NDArray[np.bool_], thresholds: Thresholds) -> dict[str, Any]:
    own = {category.value: value for category, value in thresholds.categories.items()}
    least = min([thresholds.default, *own.values()])  # decides for an answer without a category
    limits = np.array(
        [
            min((own.get(name, thresholds.default) for name in answer.categories), default=least)
            for answer in judged.answers
        ]
    )
    return Confusion.of(judged.unsafe[chosen], (judged.scores("risk") > limits)[chosen]).as_dict()
