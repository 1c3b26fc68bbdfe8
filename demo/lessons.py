"""The stages of the training, in order. Each starts from the files of the stages before.

Gen and Stream hand the backbone to and fro: Gen brings the breadth of the public sets, and Stream's heads
teach it words with few tokens a row.
"""

from dataclasses import dataclass

from data import Diet


@dataclass(frozen=True)
class Lesson:
    """`backbone` names the guard whose backbone is taken over; the other weights go on from `guard`'s own
    file, if there is one. `noise` is the rate at which text tokens are replaced by random ones."""

    guard: str
    backbone: str | None
    diet: Diet
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
        diet=Diet(prompts=1.0, safe_pairs=0.5, contrast_copies=4, borrowed=1500),
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
        diet=Diet(prompts=0.35, safe_pairs=0.4, contrast_copies=4, borrowed=600),
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
        diet=Diet(prompts=0.12, safe_pairs=0.1, contrast_copies=3, borrowed=300),
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
        diet=Diet(prompts=0.2, safe_pairs=0.3, contrast_copies=4, borrowed=300),
        steps_a_minute=62,
        peak=1.2e-3,
        warmup=30,
        category_weight=0.7,
        noise=0.03,
        batch_tokens=1024,
    ),
}
