"""A turn of the stream guard: decides which tokens of which steps go into the next passes, and runs them.

Short steps share one pass. A long step runs in chunks between the steps of other sessions, so that none of them waits
longer than a turn. This module knows the steps that are to be run and their slots, and not the other sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qwen3guard_contract.errors import Abandoned, GuardError, InternalError

from qwen3guard_runtime.engine.kv_cache import Slot
from qwen3guard_runtime.engine.logits import not_finite
from qwen3guard_runtime.engine.runner import STEP_TOKENS, Logits, Row, Runner
from qwen3guard_runtime.stream.session import ActiveStep, SessionLimits
from qwen3guard_runtime.stream.steps import Step
from qwen3guard_runtime.telemetry.metrics import Pass, StreamMetrics

HALVED_AT = 1024
"""The position where a chunk has half as many tokens as at position 0, because attention there takes about as long as
everything else in a pass."""
SMALLEST_CHUNK = 4
SHORT_CANARY = 64
"""A canary of up to so many tokens is not cut into chunks: one pass takes less time than three."""


class Turns:
    """Runs steps through `runner`. `grow` makes room in a slot for a number of tokens in all, and raises Overloaded if
    there is none. `counts` says where the passes of a step are counted. `clock` returns seconds."""

    def __init__(
        self,
        runner: Runner,
        limits: SessionLimits,
        grow: Callable[[Slot, int], None],
        counts: Callable[[Step], StreamMetrics],
        clock: Callable[[], float],
    ) -> None:
        self._runner = runner
        self._limits = limits
        self._chunk_tokens = limits.chunk_tokens
        self._grow = grow
        self._counts = counts
        self._clock = clock
        self._last_turn_had_chunks = False

    def run(self, steps: Sequence[ActiveStep], turn_ends_s: float, is_alone: Callable[[], bool]) -> None:
        """Runs the short steps in one pass, then chunks of the long steps, one after the other, until the turn ends.
        The chunks are larger if the long steps are alone: no short step is expected soon.

        A short step may have arrived during a turn with chunks and waited for its end. It must not wait for chunks in
        its own turn too, so of two successive turns with short steps only one has chunks.

        Of replays, only the one that began first takes part: so one is through after the other, and not all at the end.
        """
        short = [step for step in steps if 0 < step.left <= STEP_TOKENS]
        self._forward(short)
        long = [step for step in steps if step.left]
        replays = sorted((step for step in long if step.step.replay), key=lambda step: step.begun_s)
        unfinished = sorted((step for step in long if step not in replays[1:]), key=lambda step: step.served_s)
        if short and self._last_turn_had_chunks:
            unfinished = [step for step in unfinished if step.must_finish]
        self._last_turn_had_chunks = bool(unfinished)
        if unfinished:
            self._chunk_tokens = self._limits.tokens_of_a_chunk(alone=not short and is_alone())
        while unfinished:
            step = unfinished.pop(0)
            if step.step.is_abandoned():
                step.error = Abandoned("Its caller has hung up.")
            else:
                self._forward([step])
            if step.left:
                unfinished.append(step)
            elif step in replays[:-1]:
                unfinished.append(replays[replays.index(step) + 1])
            if self._clock() >= turn_ends_s:
                unfinished = [step for step in unfinished if step.must_finish]

    def _forward(self, steps: Sequence[ActiveStep]) -> None:
        """Runs the next chunk of each step in one pass. A step whose pass fails gets an error, and its slot is rewound
        to before the chunk."""
        rows = []
        for step in steps:
            try:
                rows.append(self._next_chunk(step))
            except GuardError as error:  # other steps have taken the room since this one began
                step.error = error
        steps = [step for step in steps if not step.error]
        if not steps:
            return
        began_s = self._clock()
        try:
            results = self._runner.forward(rows)
        except Exception as error:
            for step in steps:
                step.session.slot.length = step.step.position + step.done
            if len(steps) == 1:
                steps[0].error = InternalError(f"The model could not be run ({type(error).__name__}).")
                return
            for step in steps:  # perhaps only one of them is the cause: run each alone
                self._forward([step])
            return
        now_s = self._clock()
        kind: Pass = "prefill" if all(step.is_prefill for step in steps) else "decode"
        self._counts(steps[0].step).ran(kind, len(rows), now_s - began_s)
        for step, row, logits in zip(steps, rows, results, strict=True):
            step.session.ran_s += (now_s - began_s) / len(rows)
            self._take(step, row, logits, now_s)

    def _take(self, step: ActiveStep, row: Row, logits: Logits, now_s: float) -> None:
        """Takes the logits of one step's chunk, or gives the step an error if they are not finite.

        The last token of `row` has read all cells before it, so if any of those is not finite, its logits are not
        either. A slot with such a cell cannot be used any more, not even after a rewind, since 0 x NaN is NaN.
        """
        step.error = not_finite(logits)
        if step.error:
            step.lost = True
            self._counts(step.step).not_finite()
            return
        end = step.done + len(row.ids)
        wanted = sum(step.done <= index < end for index in step.asked)
        step.logits.append(tuple(output[:wanted] for output in logits))
        step.done, step.served_s = end, now_s
        step.passes += 1

    def _next_chunk(self, step: ActiveStep) -> Row:
        """The next tokens of a step to run. Raises Overloaded if its slot cannot hold them.

        Where a step is cut changes no bit of its logits on a CPU, whose passes compute each token by itself; a GPU's
        may round in another way. The logits of the last token are always asked for, because `_take` checks them.
        """
        size = step.left
        if size > (SHORT_CANARY if step.step.canary else STEP_TOKENS):
            position = step.step.position + step.done
            chunk = self._chunk_tokens * HALVED_AT // (HALVED_AT + position)
            size = min(size, max(chunk, SMALLEST_CHUNK))
        end = step.done + size
        asked = {index - step.done for index in step.asked if step.done <= index < end}
        # The slot grows with each chunk, not at once for the whole step: attention reads a slot to its end.
        self._grow(step.session.slot, step.step.position + end)
        return Row(step.session.slot, step.step.ids[step.done : end], sorted(asked | {size - 1}))
