"""Plots of a verification. Needs matplotlib (the extra `data`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qwen3guard_apps.evaluation.plots import pyplot
from qwen3guard_apps.verification.report import ACTIVATIONS
from qwen3guard_apps.verification.results import Verified


def plot_verification(folder: Path, verified: Verified) -> list[Path]:
    """Writes probabilities.png and outliers.png, and returns their paths. Raises ServeError without matplotlib."""
    return [_probabilities(folder / "probabilities.png", verified), _outliers(folder / "outliers.png", verified)]


def _probabilities(path: Path, verified: Verified) -> Path:
    """The share of judgements whose probability is off by more than a value, for each format."""
    figure, axes = pyplot().subplots(figsize=(6, 4), layout="constrained")
    for outcome in verified.outcomes:
        if outcome.comparison and outcome is not verified.reference:
            errors = np.sort(outcome.comparison.errors)
            axes.step(np.maximum(errors, 1e-7), 1 - np.arange(len(errors)) / len(errors), label=outcome.name)
    axes.set(xscale="log", yscale="log", xlabel="error of a level's probability", ylabel="share of judgements beyond")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return _saved(figure, path)


def _outliers(path: Path, verified: Verified) -> Path:
    """The largest channel of each layer, in units of the median channel, before and after balancing."""
    figure, places = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for axes, (state, found) in zip(places, verified.activations.items(), strict=True):
        for kind, word in ACTIVATIONS.items():
            axes.plot(found[kind].by_layer, label=word, marker=".")
        axes.set(title=state, xlabel="layer", yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    places[0].set(ylabel="largest channel, in medians")
    places[1].legend()
    return _saved(figure, path)


def _saved(figure: object, path: Path) -> Path:
    figure.savefig(path, dpi=120)  # type: ignore[attr-defined]
    pyplot().close(figure)
    return path
