"""Stream's sessions: each holds a KV slot, takes steps at absolute positions, and replies with their verdicts.

A step writes its tokens at a position; the tokens that were there and after it are dropped first. The reply depends
only on the tokens up to its end. This module knows token ids, and nothing of text or Triton.

A step that is not finished when its turn is over (`turns`) is answered with the number of its pending tokens. When the
same step is sent again, it continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from qwen3guard_contract.errors import Abandoned, GuardError, InternalError, Overloaded
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.policy import Policy

from qwen3guard_runtime.engine.kv_cache import Slot
from qwen3guard_runtime.engine.prefixes import PrefixCache
from qwen3guard_runtime.engine.runner import Runner, check_ids
from qwen3guard_runtime.request import never
from qwen3guard_runtime.stream.counts import Counts
from qwen3guard_runtime.stream.replays import Replays
from qwen3guard_runtime.stream.session import ActiveStep, Session, SessionLimits, Turn, check_step
from qwen3guard_runtime.stream.steps import Flags, Step, StepReply, judge_step
from qwen3guard_runtime.stream.turns import Turns
from qwen3guard_runtime.telemetry.metrics import Closed, StreamMetrics


class Sessions:
    """All live streams of one guard. `policy` applies to sessions that bring none; `clock` returns seconds."""

    def __init__(
        self,
        manifest: Manifest,
        runner: Runner,
        cache: PrefixCache,
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
        self._counts = Counts(metrics or StreamMetrics())
        self._live: dict[int | str, Session] = {}
        self._in_use: set[int | str] = set()
        """The sessions of the steps that are being answered."""
        self._replays = Replays(limits.replay_s, self._counts.metrics)
        self._turns = Turns(runner, limits, self._grow, self._counts.of, clock)

    def steps(self, steps: Sequence[Step]) -> list[StepReply | GuardError]:
        """Returns one reply, or its own error, for each step. Steps of one session are taken in order.

        Canaries come after all others, which find the memory as if there were none.
        """
        turn_ends_s = self._clock() + self._limits.turn_s
        self.forget_idle()
        replies = {
            canary: iter(self._answer([step for step in steps if step.canary is canary], turn_ends_s))
            for canary in (False, True)
        }
        return [next(replies[step.canary]) for step in steps]

    def _answer(self, steps: Sequence[Step], turn_ends_s: float) -> list[StepReply | GuardError]:
        self._in_use = {step.session for step in steps}
        replies: list[StepReply | GuardError | None] = [None] * len(steps)
        while None in replies:
            first_of_session: dict[int | str, int] = {}  # the number of each session's first step without a reply
            for number, step in enumerate(steps):
                if replies[number] is None:
                    first_of_session.setdefault(step.session, number)
            active: dict[int, ActiveStep] = {}
            for number in first_of_session.values():
                try:
                    active[number] = self._begin(steps[number])
                except GuardError as error:
                    replies[number] = error
            self._turns.run(list(active.values()), turn_ends_s, self._is_alone)
            for number, active_step in active.items():
                replies[number] = self._reply(active_step)
            for number in first_of_session.values():
                self._forget_if_over(steps[number], active.get(number))
        return [reply for reply in replies if reply is not None]

    def _is_alone(self) -> bool:
        """Whether no other session may send a short step soon than those whose steps are being answered."""
        now = self._clock()
        return not any(each.steps_soon(now) for name, each in self._live.items() if name not in self._in_use)

    def _forget_if_over(self, step: Step, active: ActiveStep | None) -> None:
        """Forgets the session after its last step, or after an error that it cannot go on from. `active` is None if the
        step could not begin."""
        if step.end and not (active and active.left):
            self.forget(step.session)
        elif active and active.error and (step.start or active.lost):
            self.forget(step.session, "abandoned" if isinstance(active.error, Abandoned) else "failed")

    def forget_idle(self) -> None:
        """Forgets the sessions that have not been used for `idle_s`, and what is held of others for as long."""
        self._cache.drop_idle()
        now = self._clock()
        for name in [name for name, session in self._live.items() if now - session.used_s > self._limits.idle_s]:
            self.forget(name, "idle")

    def _begin(self, step: Step) -> ActiveStep:
        """Checks a step and rewinds its session to the step's position. Continues a step that is sent again.

        If it raises, nothing has changed, except that a START without room has forgotten the former session of its id.
        """
        session = self._live.get(step.session)
        if session and session.pending and session.pending.step.same_as(step):
            session.pending.step = step
            return session.pending
        check_ids(step.ids, self._manifest.vocab_size)
        check_step(step, session, self._manifest.context)
        length = step.position + len(step.ids)
        if step.start or not session:
            session = self._open(step, length)
        else:
            self._make_room(length, session.slot)
            session.slot.length = step.position
            session.turns = session.turns_before(step.position)
            self._replays.go_on(session, step)
            if step.opens_turn:
                self._counts.of(step).began(reused=step.position, computed=len(step.ids))
        del session.runs[step.position :]
        session.pending = None
        now = self._clock()
        done = session.slot.length - step.position
        return ActiveStep(step, session, step.asked, begun_s=now, served_s=now, done=done)

    def _reply(self, active: ActiveStep) -> StepReply | GuardError:
        step, session = active.step, active.session
        session.used_s = self._clock()
        session.pending = None
        if active.left:
            active.step = replace(step, is_abandoned=never)  # that keeps Triton's request
            session.pending = active
        if active.error:
            session.failed |= isinstance(active.error, InternalError)
            session.slot.length = step.position
            return active.error
        response, prompt = judge_step(step, [] if active.left else active.asked, active.logits)
        if not active.left and step.opens_turn:
            session.open_turn(step)
        policy = session.policy
        runs_by_mode = session.count(Flags.of(policy, response))
        reply = StepReply(
            length=len(session.runs),
            pending=active.left,
            response=response,
            flags=Flags(*(tuple(run >= policy.debounce for run in mode_runs) for mode_runs in runs_by_mode)),
            run=tuple(runs_by_mode[-1]),
            prompt=prompt,
            prompt_flags=Flags.of(policy, prompt),
        )
        if not active.left:
            self._counts.answered(active, reply)
        return reply

    def _open(self, step: Step, tokens: int) -> Session:
        """Opens the step's session if there is room for `tokens`. Raises Overloaded."""
        self.forget(step.session, "restarted")
        if step.replay:
            self._replays.admit(self._live.values(), self._clock())
        self._make_room(tokens, forgetting=not step.canary)
        policy = step.policy or self._policy
        unasked = min([len(step.ids) - 1, *step.asked])
        slot = self._cache.acquire(step.ids[:unasked], step.scope)
        self._counts.of(step).began(reused=slot.length, computed=len(step.ids) - slot.length)
        turns = [Turn(0, step.response_start)]
        session = Session(slot, policy, used_s=self._clock(), turns=turns, canary=step.canary, replay=step.replay)
        self._live[step.session] = session
        self._counts.of(step).opened()
        return session

    def _grow(self, slot: Slot, tokens: int) -> None:
        """Makes room for `tokens` in `slot`. Raises Overloaded."""
        self._make_room(tokens, slot)
        self._cache.grow(slot, tokens)

    def _make_room(self, tokens: int, slot: Slot | None = None, *, forgetting: bool = True) -> None:
        """Forgets canaries and idle sessions, the longest unused first, until `slot`, or a new slot, can hold `tokens`.

        It never forgets a session that was used within `evict_s` or whose step is being answered. Raises Overloaded if
        the others do not suffice, or without `forgetting`.
        """
        now = self._clock()
        while not self._cache.has_room(tokens, slot):
            idle = [
                (not session.canary, session.used_s, name)
                for name, session in self._live.items()
                if name not in self._in_use and (session.canary or now - session.used_s >= self._limits.evict_s)
            ]
            if not idle or not forgetting:
                raise Overloaded("Every slot, or all KV memory, is taken by streams in use; try again later.")
            self.forget(min(idle, key=lambda each: each[:2])[2], "room")

    @property
    def live(self) -> int:
        """The number of sessions held."""
        return len(self._live)

    def forget(self, name: int | str, reason: Closed = "ended") -> None:
        """Drops a session. Its slot may be held for a later one. Does nothing if it is not known."""
        session = self._live.pop(name, None)
        if session:
            self._cache.release(session.slot, hold=not session.failed)
            self._counts.of(session).closed(reason)
