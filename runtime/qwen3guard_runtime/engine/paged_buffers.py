"""The inputs and outputs of paged passes over an arena: at fixed addresses on the device, and pinned on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
from qwen3guard_contract.manifest import (
    GRAPH_CANDIDATES,
    GRAPH_INPUT_IDS,
    GRAPH_LOGIT_INDEX,
    GRAPH_PAGES,
    GRAPH_POSITIONS,
    GRAPH_ROW_STARTS,
)
from qwen3guard_contract.slots import PAGE_CELLS

from qwen3guard_runtime.engine.cuda import Address, Cuda
from qwen3guard_runtime.engine.kv_cache import Arena, Ids
from qwen3guard_runtime.engine.pieces import PASS_ROWS, PASS_TOKENS
from qwen3guard_runtime.engine.runner import Logits

_ALIGNMENT = 256  # bytes; the device reads from such addresses fastest


class PassBuffers:
    """Stages the inputs of a pass, sends them in one copy, and gets its outputs in one. `widths` are those of the
    graph's outputs by name. `candidates` are the same in every pass, and empty if the graph takes none."""

    def __init__(
        self, cuda: Cuda, arena: Arena, widths: Mapping[str, int], most_asked: int, candidates: Sequence[int]
    ) -> None:
        self._cuda = cuda
        self._widths = widths
        self.pages = arena.capacity // PAGE_CELLS
        """The pages of a slot."""
        self._spare = arena.rows * self.pages
        counts = {
            GRAPH_INPUT_IDS: PASS_TOKENS,
            GRAPH_POSITIONS: PASS_ROWS,
            GRAPH_ROW_STARTS: PASS_ROWS + 1,
            GRAPH_LOGIT_INDEX: PASS_TOKENS,
            GRAPH_PAGES: PASS_ROWS * self.pages,
            GRAPH_CANDIDATES: len(candidates),
        }
        sizes = [-(-4 * count // _ALIGNMENT) * _ALIGNMENT for count in counts.values()]
        self._offsets = dict(zip(counts, accumulate(sizes, initial=0), strict=False))
        self._input = cuda.zeros(sum(sizes))
        self._staged = cuda.pinned(sum(sizes))
        self._inputs = {
            name: self._staged[self._offsets[name] : self._offsets[name] + 4 * count].view(np.int32)
            for name, count in counts.items()
        }
        self._inputs[GRAPH_CANDIDATES][:] = candidates
        output_bytes = 4 * most_asked * sum(widths.values())
        self._output = cuda.zeros(output_bytes)
        self._returned = cuda.pinned(output_bytes)

    def input(self, name: str) -> Address:
        return self._input + self._offsets[name]

    def output(self, number: int, asked: int) -> Address:
        """Where a pass with `asked` logits writes its output `number`: one after the other, without gaps."""
        return self._output + 4 * asked * sum(list(self._widths.values())[:number])

    def send(
        self, rows: Sequence[Ids], positions: Sequence[int], slots: Sequence[int], asked: Sequence[int], count: int
    ) -> None:
        """Queues a copy of the inputs of a pass of `count` rows. Those beyond `rows` have one token each, which writes
        into the spare page."""
        more = count - len(rows)
        ids = np.concatenate([*rows, np.zeros(more, np.int64)])
        lengths = [*map(len, rows), *[1] * more]
        self._inputs[GRAPH_INPUT_IDS][: len(ids)] = ids
        self._inputs[GRAPH_POSITIONS][:count] = [*positions, *[0] * more]
        self._inputs[GRAPH_ROW_STARTS][: count + 1] = list(accumulate(lengths, initial=0))
        self._inputs[GRAPH_LOGIT_INDEX][: len(asked)] = asked
        pages = self._inputs[GRAPH_PAGES][: count * self.pages].reshape(count, self.pages)
        pages[: len(rows)] = np.array(slots, np.int32).reshape(-1, 1) * self.pages + np.arange(self.pages)
        pages[len(rows) :] = self._spare
        self._cuda.upload(self._input, self._staged)

    def receive(self, asked: int) -> Logits:
        """Waits for the pass, and returns a copy of each of its outputs, float32 [asked, width]."""
        counts = [asked * width for width in self._widths.values()]
        self._cuda.download(self._returned[: 4 * sum(counts)], self._output)
        self._cuda.synchronize()
        flat = self._returned[: 4 * sum(counts)].view(np.float32).copy()
        parts = np.split(flat, np.cumsum(counts)[:-1])
        return tuple(part.reshape(asked, -1) for part in parts)
