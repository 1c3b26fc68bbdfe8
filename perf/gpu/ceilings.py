"""What the card can do, by PyTorch: the bandwidth of a copy, products at the layers' shapes, and what a launch costs.

    python perf/gpu/ceilings.py [--fake]

Every floor of the same run is computed from these figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from figures import SIZES, parser, read, say, times
from shapes import FAKE, SHAPES, lm_head, products
from torch_device import device, graphed, wait

COPY_BYTES = 4 << 30
CYCLED_BYTES = 1 << 30
"""Products are of several matrices in turn, together larger than any cache of the card."""
LAUNCHES = 1000
SQUARE = 8192
BACK_BYTES = (1 << 10, 64 << 10)


def copy(fake: bool) -> None:
    size = (1 << 20) if fake else COPY_BYTES
    source, target = (torch.ones(size, dtype=torch.uint8, device=device(fake)) for _ in range(2))

    def work() -> None:
        target.copy_(source)
        wait(fake)

    found = times(work, count=20, fake=fake)
    say("copy", gb_s=2 * size / found["ms"] / 1e6, **found)


def vectors(fake: bool) -> None:
    """Each matrix of a layer, and the output head, in fp16 times one vector, in a CUDA graph."""
    for size in SIZES:
        shape = FAKE if fake else SHAPES[size]
        for name, (rows, columns) in (products(shape) | {"lm_head": lm_head(shape)}).items():
            count = 2 if fake else max(2, min(128, math.ceil(CYCLED_BYTES / (2 * rows * columns))))
            kind = {"device": device(fake), "dtype": torch.float16}
            matrices = [torch.randn(rows, columns, **kind) for _ in range(count)]
            vector = torch.randn(columns, 1, **kind)

            def work(matrices: list[torch.Tensor] = matrices, vector: torch.Tensor = vector) -> None:
                for matrix in matrices:
                    matrix @ vector

            ms = times(graphed(work, fake), count=30, fake=fake)["ms"] / count
            bandwidth = 2 * rows * columns / ms / 1e6
            say("product", size=size, name=name, rows=rows, columns=columns, us=1e3 * ms, gb_s=bandwidth)


def square(fake: bool) -> None:
    """The product of two large matrices in bf16: the most operations that a pass of many tokens can do."""
    size = 64 if fake else SQUARE
    matrix = torch.randn(size, size, device=device(fake), dtype=torch.bfloat16)

    def work() -> None:
        matrix @ matrix
        wait(fake)

    say("square product", size=size, tflops=2 * size**3 / times(work, count=10, fake=fake)["ms"] / 1e9)


def launches(fake: bool) -> None:
    """Kernels that do almost nothing, one after the other: launched singly, and in a CUDA graph."""
    small, count = torch.zeros(64, device=device(fake)), 10 if fake else LAUNCHES

    def queue() -> None:
        for _ in range(count):
            small.add_(1)

    def alone() -> None:
        queue()
        wait(fake)

    ways: dict[str, Callable[[], None]] = {"launch alone": alone, "launch in a CUDA graph": graphed(queue, fake)}
    for name, way in ways.items():
        say(name, us=1e3 * times(way, count=10, fake=fake)["ms"] / count)


def back(fake: bool) -> None:
    """A copy to pinned memory of the host, with waiting for it: the end of every pass."""
    for size in BACK_BYTES:
        source = torch.zeros(size, dtype=torch.uint8, device=device(fake))
        target = torch.zeros(size, dtype=torch.uint8)
        target = target if fake else target.pin_memory()

        def work(source: torch.Tensor = source, target: torch.Tensor = target) -> None:
            target.copy_(source, non_blocking=True)
            wait(fake)

        say("copy to the host", bytes=size, us=1e3 * times(work, count=100, fake=fake)["ms"])


def main() -> None:
    fake = read(parser(__doc__)).fake
    card = "none" if fake else torch.cuda.get_device_name()
    memory = 0.0 if fake else torch.cuda.mem_get_info()[1] / 2**30
    say("card", name=card, memory_gib=memory, torch=torch.__version__, cuda=torch.version.cuda)
    for measure in (copy, launches, square, back, vectors):
        measure(fake)


if __name__ == "__main__":
    main()
