"""The plots of a card's result: bare steps against sessions beside their floor, and one step beside its peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shapes import Ceilings, Work

STEPS, PEERS = "gpu-steps.png", "gpu-peers.png"
BLUE, GREY = "#2563eb", "#9ca3af"
Figure = dict[str, Any]


def names(figures: list[Figure]) -> list[str]:
    """The files that `draw` writes for these figures."""
    return [name for name, found in ((STEPS, _steps(figures)), (PEERS, _peers(figures))) if found]


def draw(figures: list[Figure], folder: Path) -> None:
    """Writes the plots into `folder`. Raises ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    ceilings = Ceilings.of(figures)
    for name in names(figures):
        figure, axes = plt.subplots(figsize=(6, 3.2), dpi=120)
        if name == STEPS:
            for context, mark in ((512, "o-"), (2048, "s--")):
                steps = [step for step in _steps(figures) if step["context"] == context]
                sessions = [step["sessions"] for step in steps]
                axes.plot(sessions, [step["ms"] for step in steps], mark, color=BLUE, label=f"at {context}")
                if ceilings:
                    floors = [ceilings.floor_ms(Work("0.6B", "stream", count, context)) for count in sessions]
                    axes.plot(sessions, floors, mark[1:], color=GREY, label=f"floor at {context}")
            counts = sorted({step["sessions"] for step in _steps(figures)})
            axes.set_xscale("log", base=2)
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.set_xlabel("sessions at once")
            axes.set_title("Stream 0.6B fp16, a bare step of 1 token each, ms", loc="left")
            axes.legend(frameon=False)
        else:
            found = _peers(figures)
            axes.barh([label for label, _ in found], [ms for _, ms in found], color=[BLUE, *[GREY] * (len(found) - 1)])
            axes.set_title("0.6B, one session, a step of 1 token at 512, ms", loc="left")
        figure.savefig(folder / name, bbox_inches="tight")
        plt.close(figure)


def _steps(figures: list[Figure]) -> list[Figure]:
    wanted = {"figure": "step", "size": "0.6B", "variant": "stream", "weights": "fp16", "k": 1}
    return [figure for figure in figures if wanted.items() <= figure.items()]


def _peers(figures: list[Figure]) -> list[tuple[str, float]]:
    """Our step and each way of the peer's, with their milliseconds; nothing if either is missing."""
    ours = [each["ms"] for each in _steps(figures) if (each["sessions"], each["context"]) == (1, 512)]
    wanted = {"figure": "peer step", "size": "0.6B", "context": 512}
    theirs = [(each["how"], each["ms"]) for each in figures if wanted.items() <= each.items()]
    if not ours or not theirs:
        return []
    return [("this project, fp16", ours[-1]), *((f"transformers bf16, {how}", ms) for how, ms in theirs)]
