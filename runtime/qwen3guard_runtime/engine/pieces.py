"""Divides rows into passes that take rows of any lengths, in any slots, one after the other without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwen3guard_runtime.engine.kv_cache import Ids
from qwen3guard_runtime.engine.runner import Row

PASS_TOKENS = 2048
"""The most tokens of a pass. A longer row takes several."""
PASS_ROWS = 256


@dataclass(frozen=True)
class RowPiece:
    """The tokens of `row` from index `begin` up to `end`, which run in one pass."""

    row: Row
    begin: int
    end: int

    @property
    def ids(self) -> Ids:
        return self.row.ids[self.begin : self.end]

    @property
    def asked(self) -> list[int]:
        """The indices within the piece of the tokens whose logits are wanted."""
        return [index - self.begin for index in self.row.asked if self.begin <= index < self.end]


def passes(rows: Sequence[Row], most_asked: int) -> Iterator[list[RowPiece]]:
    """Divides rows into passes of at most PASS_TOKENS, PASS_ROWS and `most_asked` tokens with logits.

    All slots of a pass are of one arena, and the pieces of a row are in passes that follow one another. Short rows come
    first.
    """
    waiting = [(row, 0) for row in sorted(rows, key=lambda row: len(row.ids)) if len(row.ids)]
    while waiting:
        arena = waiting[0][0].slot.arena
        taken: list[RowPiece] = []
        left: list[tuple[Row, int]] = []
        tokens, asked = PASS_TOKENS, most_asked
        for row, begin in waiting:
            end = min(len(row.ids), begin + tokens)
            wanted = [index for index in row.asked if begin <= index < end]
            if len(wanted) > asked:
                end, wanted = wanted[asked], wanted[:asked]
            if row.slot.arena is not arena or end == begin or len(taken) == PASS_ROWS:
                left.append((row, begin))
                continue
            taken.append(RowPiece(row, begin, end))
            tokens -= end - begin
            asked -= len(wanted)
            if end < len(row.ids):
                left.append((row, end))
        yield taken
        waiting = left
