"""Stream: position-addressed sessions over KV slots, and the verdicts of each step.

A step writes its tokens at an absolute position; whatever stood there or after is dropped first. The reply
depends on nothing but the tokens up to its end. Knows token ids; nothing of text or Triton.

A step that is not done when its turn is over (`turns`) is answered with the number of tokens that are pending; the same
step sent again goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qwen3guard_contract.errors import GuardError, Overloaded
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.policy import Policy, runs

from qwen3guard_runtime.engine.kv_cache import KVCache, Slot
from qwen3guard_runtime.engine.logits import check_ids
from qwen3guard_runtime.engine.runner import Runner
from qwen3guard_runtime.stream.session import Session, SessionLimits, Work, check_step
from qwen3guard_runtime.stream.steps import Flags, Step, StepReply, judgements
from qwen3guard_runtime.stream.turns import Turns
from qwen3guard_runtime.telemetry.metrics import Closed, StreamMetrics

NO_RUNS = (0, 0, 0)


class Sessions:
    """All live streams of one guard. `clock` gives seconds; `policy` is that of sessions that bring none."""

    def __init__(
        self,
        manifest: Manifest,
        runner: Runner,
        cache: KVCache,
        *,
        policy: Policy,
        limits: SessionLimits,
        clock: Callable[[], float],
        metrics: StreamMetrics | None = None,
    ) -> None:
        self._manifest = manifest
        self._cache = cache
        self._policy = policy
        self._limits = limits
        self._clock = clock
        self._metrics = metrics or StreamMetrics()
        self._live: dict[int | str, Session] = {}
        self._in_use: set[int | str] = set()
        """Sessions with a step in this turn."""
        self._turns = Turns(runner, limits.chunk_tokens, self._grow, self._metrics, clock)

    def steps(self, steps: Sequence[Step]) -> list[StepReply | GuardError]:
        """One reply, or its own error, for each step. Steps of one session are taken in order."""
        turn_ends = self._clock() + self._limits.turn_s
        self.forget_idle()
        self._in_use = {step.session for step in steps}
        replies: list[StepReply | GuardError | None] = [None] * len(steps)
        while None in replies:
            turn: dict[int | str, tuple[int, Step]] = {}
            for number, step in enumerate(steps):
                if replies[number] is None:
                    turn.setdefault(step.session, (number, step))
            works: dict[int, Work] = {}
            for number, step in turn.values():
                try:
                    works[number] = self._begin(step)
                except GuardError as error:
                    replies[number] = error
            self._turns.run(list(works.values()), turn_ends)
            for number, work in works.items():
                replies[number] = self._reply(work)
            for number, step in turn.values():
                begun = works.get(number)
                if step.end and not (begun and begun.left):
                    self.forget(step.session)
                elif begun and begun.error and (step.start or begun.lost):
                    self.forget(step.session, "failed")
        return [reply for reply in replies if reply is not None]

    def forget_idle(self) -> None:
        """Frees the slots of sessions that have not been used for `idle_s`."""
        now = self._clock()
        for name in [name for name, session in self._live.items() if now - session.used_s > self._limits.idle_s]:
            self.forget(name, "idle")

    def _begin(self, step: Step) -> Work:
        """Checks a step and rewinds its session to where the step writes.

        Nothing changes if it raises; but a START that there is no room for has forgotten what its id held.
        """
        session = self._live.get(step.session)
        if session and session.pending and session.pending.step.same_as(step):
            return session.pending
        check_ids(step.ids, self._manifest.vocab_size)
        check_step(step, session, self._manifest.context)
        length = step.position + len(step.ids)
        if step.start or not session:
            session = self._open(step, length)
        else:
            self._make_room(length, session.slot)
        session.slot.length = step.position
        del session.runs[step.position :]
        session.pending = None
        asked = set(range(step.response_start, len(step.ids)))
        if step.query_index >= 0:
            asked.add(step.query_index)
        now = self._clock()
        return Work(step, session, sorted(asked), now, now)

    def _reply(self, work: Work) -> StepReply | GuardError:
        step, session = work.step, work.session
        session.used_s = self._clock()
        session.pending = work if work.left else None
        if work.error:
            session.slot.length = step.position
            return work.error
        response, prompt = judgements(step, [] if work.left else work.asked, work.found)
        if not work.left:
            session.runs += [NO_RUNS] * min(step.response_start, len(step.ids))
        policy = session.policy
        before = session.runs[-1] if session.runs else NO_RUNS
        counted = [runs(each, before=run) for each, run in zip(Flags.of(policy, response), before, strict=True)]
        session.runs += zip(*counted, strict=True)
        reply = StepReply(
            len(session.runs),
            work.left,
            response,
            Flags(*(tuple(run >= policy.debounce for run in each) for each in counted)),
            tuple(counted[-1]),
            prompt,
            Flags.of(policy, prompt),
        )
        if not work.left:
            self._count(work, reply)
        return reply

    def _count(self, work: Work, reply: StepReply) -> None:
        step, session = work.step, work.session
        self._metrics.judged(reply.response.risk, reply.prompt.risk)
        if len(step.ids):
            prompt_tokens = min(step.response_start, len(step.ids)) if step.start else 0
            self._metrics.stepped(session.used_s - work.begun_s, prompt_tokens=prompt_tokens, opening=step.start)
        if any(reply.prompt_flags.own):
            self._metrics.flagged("prompt")
        if any(reply.flags.own) and not session.flagged:
            session.flagged = True
            self._metrics.flagged("response")

    def _open(self, step: Step, tokens: int) -> Session:
        self.forget(step.session, "restarted")
        self._make_room(tokens)
        policy = step.policy or self._policy
        session = Session(self._cache.acquire(0), policy, self._clock(), begins=step.response_start)
        self._live[step.session] = session
        self._metrics.opened()
        return session

    def _grow(self, slot: Slot, tokens: int) -> None:
        """Raises Overloaded."""
        self._make_room(tokens, slot)
        self._cache.grow(slot, tokens)

    def _make_room(self, tokens: int, slot: Slot | None = None) -> None:
        """Forgets idle sessions, the longest unused first, until `slot`, or a new one, can have `tokens`.

        Raises Overloaded before it forgets one that was used within `evict_s`, or has a step in this turn.
        """
        now = self._clock()
        while not self._cache.has_room(tokens, slot):
            idle = [
                name
                for name, session in self._live.items()
                if name not in self._in_use and now - session.used_s >= self._limits.evict_s
            ]
            if not idle:
                raise Overloaded("All KV memory is taken by streams in use; try again later.")
            self.forget(min(idle, key=lambda name: self._live[name].used_s), "room")

    @property
    def live(self) -> int:
        return len(self._live)

    def forget(self, name: int | str, reason: Closed = "ended") -> None:
        """Frees the slot of a session, if it is known."""
        session = self._live.pop(name, None)
        if session:
            self._cache.release(session.slot)
            self._metrics.closed(reason)
