"""The turns of a stream guard: which tokens of which steps go into the next passes.

Short steps share one pass. A long step is run in chunks between the steps of other sessions, so that none of them waits
longer than a turn. Knows the work that is to be done, and slots; not which sessions there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qwen3guard_contract.errors import GuardError, InternalError

from qwen3guard_runtime.engine.kv_cache import Slot
from qwen3guard_runtime.engine.logits import not_finite
from qwen3guard_runtime.engine.runner import STEP_TOKENS, Logits, Row, Runner
from qwen3guard_runtime.stream.session import Work
from qwen3guard_runtime.telemetry.metrics import Pass, StreamMetrics

HALVED_AT = 1024
"""Position where a chunk has half the tokens that it has at 0: there, attention costs as much as all the rest."""
SMALLEST_CHUNK = 4


class Turns:
    """`grow` makes room in a slot for as many tokens in all, and raises Overloaded where there is none; `clock` gives
    seconds."""

    def __init__(
        self,
        runner: Runner,
        chunk_tokens: int,
        grow: Callable[[Slot, int], None],
        metrics: StreamMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._runner = runner
        self._chunk_tokens = chunk_tokens
        self._grow = grow
        self._metrics = metrics
        self._clock = clock
        self._others_waited = False
        """The last turn had chunks of long steps."""

    def run(self, works: Sequence[Work], turn_ends: float) -> None:
        """Short steps in one pass; then chunk after chunk of the long ones, in rotation, while the turn lasts.

        A step that came too late for a turn with chunks waits for it, and shall not wait for chunks of its own turn
        too: two turns in a row with short steps never both have chunks.
        """
        short = [work for work in works if 0 < work.left <= STEP_TOKENS]
        self._forward(short)
        waiting = sorted((work for work in works if work.left), key=lambda work: work.served_s)
        if short and self._others_waited:
            waiting = [work for work in waiting if work.must_finish]
        self._others_waited = bool(waiting)
        while waiting:
            work = waiting.pop(0)
            self._forward([work])
            if work.left:
                waiting.append(work)
            if self._clock() >= turn_ends:
                waiting = [work for work in waiting if work.must_finish]

    def _forward(self, works: Sequence[Work]) -> None:
        """Runs the next chunk of each. Where the graph fails, the step does, and its session ends before it."""
        rows = []
        for work in works:
            try:
                rows.append(self._next_chunk(work))
            except GuardError as error:  # others have taken the room that there was for it
                work.error = error
        works = [work for work in works if not work.error]
        if not works:
            return
        began = self._clock()
        try:
            found = self._runner.forward(rows)
        except Exception as error:
            for work in works:
                work.session.slot.length = work.step.position + work.done
            if len(works) == 1:
                works[0].error = InternalError(f"The model could not be run ({type(error).__name__}).")
                return
            for work in works:  # one of them may be to blame, but the others are not
                self._forward([work])
            return
        now = self._clock()
        kind: Pass = "prefill" if all(work.is_prefill for work in works) else "decode"
        self._metrics.ran(kind, len(rows), now - began)
        for work, row, logits in zip(works, rows, found, strict=True):
            self._take(work, row, logits, now)

    def _take(self, work: Work, row: Row, logits: Logits, now: float) -> None:
        """What a pass has found of one step.

        The last token of `row` has read all cells before it, so its numbers are not finite where any of those is not.
        A slot with such a cell would spoil what is written to it later, even behind a rewind: 0 x NaN is NaN.
        """
        work.error = not_finite(logits)
        if work.error:
            work.lost = True
            self._metrics.not_finite()
            return
        end = work.done + len(row.ids)
        wanted = sum(work.done <= index < end for index in work.asked)
        work.found.append(tuple(output[:wanted] for output in logits))
        work.done, work.served_s = end, now

    def _next_chunk(self, work: Work) -> Row:
        """Where a step is cut depends on nothing but its length and position, so its numbers do not either."""
        size = work.left
        if size > STEP_TOKENS:
            position = work.step.position + work.done
            chunk = self._chunk_tokens * HALVED_AT // (HALVED_AT + position)
            size = min(size, max(chunk, SMALLEST_CHUNK))
        end = work.done + size
        asked = {index - work.done for index in work.asked if work.done <= index < end}
        # A slot for more than that would only cost: attention reads all of it.
        self._grow(work.session.slot, work.step.position + end)
        return Row(work.session.slot, work.step.ids[work.done : end], sorted(asked | {size - 1}))
