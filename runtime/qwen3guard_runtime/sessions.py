"""Stream: position-addressed sessions over KV slots, and the verdicts of each step.

A step writes its tokens at an absolute position; whatever stood there or after is dropped first. The reply
depends on nothing but the tokens up to its end. Knows token ids; nothing of text or Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from qwen3guard_client.errors import (
    EmptyText,
    GuardError,
    InternalError,
    InvalidRequest,
    PositionOutOfRange,
    SessionLost,
    TextTooLong,
)
from qwen3guard_client.labels import (
    QUERY_CATEGORY_ORDER,
    RESPONSE_CATEGORY_ORDER,
    RISK_ORDER,
    Category,
    RiskLevel,
)
from qwen3guard_client.manifest import Manifest
from qwen3guard_client.policy import flags

from qwen3guard_runtime.gen import check_ids
from qwen3guard_runtime.kv_cache import KVCache, Slot
from qwen3guard_runtime.runner import Ids, Logits, Row, Runner

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """`ids` to write at `position`. Tokens from index `response_start` on are judged as the response;
    the prompt is judged at index `query_index` (-1: not in this step)."""

    session: int | str
    ids: Ids
    position: int
    start: bool = False
    end: bool = False
    query_index: int = -1
    response_start: int = 0


@dataclass(frozen=True)
class Judgement:
    """Levels and categories of some tokens with their probabilities [tokens, 3] and [tokens, 8 or 9]."""

    risk: tuple[RiskLevel, ...]
    category: tuple[Category | None, ...]
    risk_probabilities: Floats
    category_probabilities: Floats


@dataclass(frozen=True)
class Reply:
    """The judged tokens of a step with their debounced flags; `prompt` has one row, or none."""

    length: int
    response: Judgement
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]
    prompt: Judgement


@dataclass
class Session:
    slot: Slot
    used_s: float
    levels: list[RiskLevel | None] = field(default_factory=list)
    """One for each token held; None for tokens that are not of the response."""


class Sessions:
    """All live streams of one guard. `clock` gives seconds; sessions idle for `idle_s` are forgotten."""

    def __init__(
        self,
        manifest: Manifest,
        runner: Runner,
        *,
        slots: int,
        debounce: int,
        idle_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._manifest = manifest
        self._runner = runner
        self._slots = slots
        self._debounce = debounce
        self._idle_s = idle_s
        self._clock = clock
        self._cache = KVCache(manifest, slots=slots)
        self._live: dict[int | str, Session] = {}

    def steps(self, steps: Sequence[Step]) -> list[Reply | GuardError]:
        """One reply, or its own error, for each step. Steps of one session are taken in order."""
        self._forget_idle()
        replies: list[Reply | GuardError | None] = [None] * len(steps)
        while None in replies:
            taken: set[int | str] = set()
            turn: list[tuple[int, Session, Row]] = []
            for number, step in enumerate(steps):
                if replies[number] is None and step.session not in taken:
                    taken.add(step.session)
                    try:
                        turn.append((number, *self._place(step, taken)))
                    except GuardError as error:
                        replies[number] = error
            for number, reply in self._judge(steps, turn):
                replies[number] = reply
        for step in steps:
            if step.end:
                self._forget(step.session)
        return [reply for reply in replies if reply is not None]

    def _place(self, step: Step, in_use: Collection[int | str]) -> tuple[Session, Row]:
        """Checks a step and rewinds its session to where the step writes. Nothing changes if it raises."""
        check_ids(step.ids, self._manifest.vocab_size)
        length = step.position + len(step.ids)
        if step.position < 0:
            raise PositionOutOfRange(f"The position {step.position} is negative.")
        if not len(step.ids) and not step.end:
            raise EmptyText("The step has no tokens.")
        if not -1 <= step.query_index < len(step.ids) or not 0 <= step.response_start <= len(step.ids):
            raise InvalidRequest("QUERY_INDEX or RESPONSE_START points outside the step.")
        session = None if step.start else self._live.get(step.session)
        held = session.slot.length if session else 0
        if not session and not step.start:
            raise SessionLost("The session is not known here; open it again with START and everything so far.")
        if step.position > held:
            raise PositionOutOfRange(f"The position {step.position} leaves a gap: the session holds {held} tokens.")
        if length > self._manifest.context:
            raise TextTooLong(f"The stream would have {length} tokens; the context holds {self._manifest.context}.")
        if session is None:
            session = self._open(step.session, length, in_use)
        self._cache.grow(session.slot, length)
        session.slot.length = step.position
        del session.levels[step.position :]
        session.used_s = self._clock()
        asked = set(range(step.response_start, len(step.ids)))
        if step.query_index >= 0:
            asked.add(step.query_index)
        return session, Row(session.slot, step.ids, sorted(asked))

    def _judge(
        self, steps: Sequence[Step], turn: Sequence[tuple[int, Session, Row]]
    ) -> list[tuple[int, Reply | GuardError]]:
        rows = [row for _, _, row in turn if len(row.ids)]
        try:
            found = dict(zip(map(id, rows), self._runner.forward(rows), strict=True))
        except Exception as error:
            for number, session, _ in turn:  # the cache keeps only what stood before the step
                session.slot.length = steps[number].position
            if len(turn) > 1:  # one of them may be to blame, but the others are not
                return [reply for each in turn for reply in self._judge(steps, [each])]
            return [(turn[0][0], InternalError(f"The model could not be run ({type(error).__name__})."))]
        return [(number, self._reply(steps[number], session, row, found.get(id(row)))) for number, session, row in turn]

    def _reply(self, step: Step, session: Session, row: Row, logits: Logits | None) -> Reply:
        outputs = logits or tuple(np.zeros((0, width), np.float32) for width in (3, 8, 3, 9))
        judged = [number for number, index in enumerate(row.asked) if index >= step.response_start]
        queried = [number for number, index in enumerate(row.asked) if index == step.query_index]
        response = judge(outputs[0][judged], outputs[1][judged], RESPONSE_CATEGORY_ORDER)
        prompt = judge(outputs[2][queried], outputs[3][queried], QUERY_CATEGORY_ORDER)
        unjudged: list[RiskLevel | None] = [None] * min(step.response_start, len(step.ids))
        session.levels += unjudged
        before = [level for level in session.levels[-self._debounce :] if level is not None]
        session.levels += response.risk
        strict, loose = (
            tuple(flags(before, response.risk, strict=mode, debounce=self._debounce)) for mode in (True, False)
        )
        return Reply(session.slot.length, response, strict, loose, prompt)

    def _open(self, name: int | str, tokens: int, in_use: Collection[int | str]) -> Session:
        """Makes room by forgetting the session that was used longest ago; raises Overloaded if all are `in_use`."""
        self._forget(name)
        idle = [each for each in self._live if each not in in_use]
        if len(self._live) >= self._slots and idle:
            self._forget(min(idle, key=lambda each: self._live[each].used_s))
        session = Session(self._cache.acquire(tokens), self._clock())
        self._live[name] = session
        return session

    def _forget(self, name: int | str) -> None:
        session = self._live.pop(name, None)
        if session:
            self._cache.release(session.slot)

    def _forget_idle(self) -> None:
        now = self._clock()
        for name in [name for name, session in self._live.items() if now - session.used_s > self._idle_s]:
            self._forget(name)


def judge(risk_logits: Floats, category_logits: Floats, order: Sequence[Category]) -> Judgement:
    """Levels and categories of tokens; the category is None where the level is Safe, since it is not trained there."""
    risk, category = softmax(risk_logits), softmax(category_logits)
    levels = tuple(RISK_ORDER[index] for index in risk.argmax(axis=-1))
    names = tuple(
        None if level is RiskLevel.SAFE else order[index]
        for level, index in zip(levels, category.argmax(axis=-1), strict=True)
    )
    return Judgement(levels, names, risk, category)


def softmax(logits: Floats) -> Floats:
    """Over the last axis; float32, computed in float64."""
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)
