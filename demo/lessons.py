"""The stages of the training, in order. Each starts from the files of the stages before it.

Gen and Stream take over each other's backbone: Gen learns from the breadth of the public sets, and Stream's heads teach
the backbone the words, with few tokens in a row.
"""

from dataclasses import dataclass

from data import EpochShares


@dataclass(frozen=True)
class Lesson:
    """One stage, which trains `guard`.

    `backbone` names the guard whose saved backbone it starts from, or None for a new one. If that is `guard` itself,
    its other weights are taken over too. `peak` is the highest learning rate. `noise` is the rate at which tokens of
    the text are replaced by random ones.
    """

    guard: str
    backbone: str | None
    shares: EpochShares
    steps_a_minute: int
    peak: float
    warmup: int
    category_weight: float
    noise: float
    batch_tokens: int


STAGES = {
    "gen": Lesson(
        guard="gen",
        backbone=None,
        shares=EpochShares(prompts=1.0, safe_pairs=0.5, contrast_copies=4, borrowed=1500),
        steps_a_minute=110,
        peak=2.5e-3,
        warmup=100,
        category_weight=0.4,
        noise=0.1,
        batch_tokens=2048,
    ),
    "stream": Lesson(
        guard="stream",
        backbone="gen",
        shares=EpochShares(prompts=0.35, safe_pairs=0.4, contrast_copies=4, borrowed=600),
        steps_a_minute=105,
        peak=1.5e-3,
        warmup=30,
        category_weight=1.0,
        noise=0.06,
        batch_tokens=1024,
    ),
    "gen_again": Lesson(
        guard="gen",
        backbone="stream",
        shares=EpochShares(prompts=0.12, safe_pairs=0.1, contrast_copies=3, borrowed=300),
        steps_a_minute=72,
        peak=1.5e-3,
        warmup=30,
        category_weight=1.0,
        noise=0.06,
        batch_tokens=1024,
    ),
    "stream_again": Lesson(
        guard="stream",
        backbone="stream",
        shares=EpochShares(prompts=0.2, safe_pairs=0.3, contrast_copies=4, borrowed=300),
        steps_a_minute=62,
        peak=1.2e-3,
        warmup=30,
        category_weight=0.7,
        noise=0.03,
        batch_tokens=1024,
    ),
}
