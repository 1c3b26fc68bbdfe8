"""PyTorch on the card, or with `fake` on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch


def device(fake: bool) -> str:
    """The device's name. The CPU gets one thread, since other work may run beside it."""
    if fake:
        torch.set_num_threads(1)
    return "cpu" if fake else "cuda"


def wait(fake: bool) -> None:
    """Returns when the card has done all that was queued."""
    if not fake:
        torch.cuda.synchronize()


def graphed(work: Callable[[], object], fake: bool) -> Callable[[], None]:
    """What `work` queues, recorded as a CUDA graph: a function that replays it and waits. On the CPU it is run as it
    is. Raises RuntimeError if it cannot be recorded."""
    if fake:
        return lambda: work() and None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay
