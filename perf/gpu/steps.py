"""Bare steps: the runner of a guard on the card, without a server. 1 to 64 sessions, 1, 4 or 16 tokens of each, at 512
and at 2,048 tokens of context.

    python perf/gpu/steps.py [--size 0.6B] [--variant stream] [--weights fp16] [--fake]

A time is that of `Runner.forward`: the host's work, the copies there and back, and the wait for the card. Every step
begins at the same context again. With --fake, ONNX Runtime's CUDA provider queues the passes, and no kernel runs.
"""

from __future__ import annotations

import numpy as np
from figures import SIZES, VARIANTS, WEIGHTS, parser, read, say, times
from opened import opened, over_fake_cuda
from prepared import guard
from qwen3guard_runtime.engine.kv_cache import KVCache, Slot
from qwen3guard_runtime.engine.runner import Row, Runner

SESSIONS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (512, 2048)
TOKENS = (1, 4, 16)
SLOT_TOKENS = 2304
"""The longest context and the longest step, in whole pages."""
TIMED, WARM = 200, 20
FILL = 512


class Sessions:
    """64 slots, each filled up to the longest context."""

    def __init__(self, runner: Runner, cache: KVCache, vocabulary: int) -> None:
        self._runner, self._random, self._vocabulary = runner, np.random.default_rng(0), vocabulary
        self.slots = [cache.acquire(SLOT_TOKENS) for _ in range(max(SESSIONS))]
        while self.slots[0].length < max(CONTEXTS):
            self._forward(self.slots, FILL, [])

    def step(self, sessions: int, context: int, tokens: int) -> None:
        slots = self.slots[:sessions]
        for slot in slots:
            slot.length = context
        self._forward(slots, tokens, range(tokens))

    def _forward(self, slots: list[Slot], tokens: int, asked: range | list[int]) -> None:
        ids = self._random.integers(0, self._vocabulary, (len(slots), tokens))
        self._runner.forward([Row(slot, each, asked) for slot, each in zip(slots, ids, strict=True)])


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", choices=SIZES, default="0.6B")
    made.add_argument("--variant", choices=VARIANTS, default="stream")
    made.add_argument("--weights", choices=WEIGHTS, default="fp16")
    arguments = read(made)
    folder = guard(arguments.folder, arguments.size, arguments.variant, arguments.weights, fake=arguments.fake)
    if arguments.fake:
        over_fake_cuda()
    place = opened(folder, slot_tokens=SLOT_TOKENS)
    cache = KVCache(place.manifest, slots=max(SESSIONS), memory=place.memory)
    all_sessions = Sessions(place.runner, cache, place.manifest.vocab_size)
    for context in CONTEXTS:
        for tokens in TOKENS:
            for sessions in SESSIONS:
                found = times(
                    lambda c=context, k=tokens, n=sessions: all_sessions.step(n, c, k),  # type: ignore[misc]
                    count=TIMED,
                    warm=WARM,
                    fake=arguments.fake,
                )
                say(
                    "step",
                    size=arguments.size,
                    variant=arguments.variant,
                    weights=arguments.weights,
                    sessions=sessions,
                    context=context,
                    k=tokens,
                    tokens_s=1e3 * sessions * tokens / found["ms"],
                    **found,
                )


if __name__ == "__main__":
    main()
