"""The memory that a guard takes on the card: its weights, each slot, and what a step and a long pass need besides.

    python perf/gpu/memory.py [--size 0.6B] [--variant stream gen] [--weights fp16] [--fake]

It is the difference of what the card has free, so nothing else may run on it meanwhile. With --fake, the CUDA runtime
that is not there counts what is asked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from figures import SIZES, VARIANTS, WEIGHTS, parser, read, say
from opened import opened, over_fake_cuda
from prepared import guard
from qwen3guard_contract.slots import slot_bytes
from qwen3guard_runtime.engine import cuda
from qwen3guard_runtime.engine.cuda import Cuda
from qwen3guard_runtime.engine.kv_cache import KVCache
from qwen3guard_runtime.engine.runner import Row
from shapes import checkpoint_shape, weight_bytes

SLOTS, SLOT_TOKENS, LONG = 16, 2048, 1500
GIB = 2**30


def measure(folder: Path, size: str, variant: str, weights: str, *, fake: bool) -> None:
    """Says what the guard in `folder` takes. The slots stay taken until the process ends."""
    card = Cuda(cuda.bindings())
    free = [card.free_bytes()]

    def taken() -> float:
        free.append(card.free_bytes())
        return (free[-2] - free[-1]) / GIB

    place = opened(folder, slot_tokens=SLOT_TOKENS)
    loaded = taken()
    cache = KVCache(place.manifest, slots=SLOTS, memory=place.memory)
    slots = [cache.acquire(1) for _ in range(SLOTS)]
    held = taken()
    one = np.zeros(1, np.int64)
    place.runner.forward([Row(slot, one, [0]) for slot in slots])
    recorded = taken()
    place.runner.forward([Row(slots[0], np.zeros(LONG, np.int64), [LONG - 1])])
    say(
        "memory",
        size=size,
        variant=variant,
        weights=weights,
        loaded_gib=loaded,
        layers_gib=weight_bytes(checkpoint_shape(size, fake=fake), "stream") / GIB,
        slots=SLOTS,
        slots_gib=held,
        slot_mib=slot_bytes(place.manifest.caches, slots[0].arena.capacity) / 2**20,
        recorded_gib=recorded,
        long_pass_gib=taken(),
    )


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", choices=SIZES, default="0.6B")
    made.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    made.add_argument("--weights", choices=WEIGHTS, default="fp16")
    arguments = read(made)
    size, weights, fake = arguments.size, arguments.weights, arguments.fake
    folders = {each: guard(arguments.folder, size, each, weights, fake=fake) for each in arguments.variant}
    if fake:
        over_fake_cuda()
    for variant, folder in folders.items():
        measure(folder, size, variant, weights, fake=fake)


if __name__ == "__main__":
    main()
