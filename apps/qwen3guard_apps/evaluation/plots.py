"""Plots of the curves. Needs matplotlib (the extra `data`)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3guard_contract.errors import ServeError

from qwen3guard_apps.evaluation.curves import Curve


def plot(folder: Path, curves: Mapping[str, Curve], *, prevalence: float, notice: str = "") -> list[Path]:
    """Writes roc.png and precision_recall.png of the named curves, and returns their paths.

    Chance is drawn too: the diagonal, and `prevalence`, the share of unsafe rows. `notice` is the guard's notice,
    written above. Raises ServeError where matplotlib is missing.
    """
    drawing = pyplot()
    paths = []
    for name, x, y in (("roc", "false_positive_rate", "recall"), ("precision_recall", "recall", "precision")):
        figure, axes = drawing.subplots(figsize=(5, 5), layout="constrained")
        for label, points in curves.items():
            begin, style = ([0], "default") if name == "roc" else ([], "steps")
            columns = ([*begin, *getattr(points, column)] for column in (x, y))
            axes.plot(*columns, label=label, drawstyle=style)
        chance = ([0, 1], [0, 1]) if name == "roc" else ([0, 1], [prevalence] * 2)
        axes.plot(*chance, label="chance", color="grey", linestyle=":")
        axes.set_title(notice, fontsize="small", wrap=True)
        axes.set(xlabel=x.replace("_", " "), ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend()
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
        drawing.close(figure)
    return paths


def pyplot() -> Any:
    """matplotlib.pyplot, which draws into files here. Raises ServeError where it is missing."""
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise ServeError("matplotlib is not installed, so no plots are written: pip install matplotlib.") from None
