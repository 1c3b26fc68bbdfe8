"""One live stream, the step that runs in it, and the check whether the stream may take a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from qwen3guard_contract.errors import (
    EmptyText,
    GuardError,
    InvalidRequest,
    PositionOutOfRange,
    SessionLost,
    TextTooLong,
)
from qwen3guard_contract.policy import Policy, runs

from qwen3guard_runtime.engine.kv_cache import Slot
from qwen3guard_runtime.engine.runner import STEP_TOKENS, Logits
from qwen3guard_runtime.stream.steps import Flags, Step


@dataclass(frozen=True)
class SessionLimits:
    """Sessions that are idle for `idle_s` seconds are forgotten. If memory is needed, those idle for `evict_s` are.

    A long step runs in chunks of up to `chunk_tokens`, or `alone_tokens` while no other session steps, and lets others
    wait for about `turn_s` seconds at most. Lost sessions that are written again at once take about
    `replay_s` seconds of the graph's time together.
    """

    idle_s: float
    evict_s: float
    turn_s: float
    chunk_tokens: int
    alone_tokens: int
    replay_s: float = 10.0

    def tokens_of_a_chunk(self, *, alone: bool) -> int:
        return self.alone_tokens if alone else self.chunk_tokens


REPLAY_GAP_S = 3.0
"""A replay whose next step has not come for so long is taken for given up."""
ALONE_S = 1.0
"""A session that has not stepped for so long is not expected to step soon: an LLM writes faster."""
NO_RUNS = (0, 0, 0)
"""The runs of a token that is not of the response."""


class Turn(NamedTuple):
    """A prompt, which begins at the token `start` of a session, with its response, which begins at `response_start`."""

    start: int
    response_start: int


@dataclass(eq=False)
class Session:
    """One stream that the server holds. It writes the response of the last of its `turns`. A `canary` may be forgotten
    at any time."""

    slot: Slot
    policy: Policy
    used_s: float
    turns: list[Turn]
    canary: bool = False
    replay: bool = False
    """Whether its last step was one of a replay."""
    ran_s: float = 0.0
    """The graph's time that its steps have taken."""
    runs: list[tuple[int, ...]] = field(default_factory=list)
    """The runs (`policy.runs`) of each token held, in strict mode, in loose mode and by the session's own policy. They
    are 0 for tokens that are not of the response."""
    pending: ActiveStep | None = None
    """The step that was answered before all its tokens were run."""
    failed: bool = False
    """Whether the model could not be run for one of its steps. Nothing in its slot is used for another then."""
    flagged: bool = False
    """Whether its own policy has ever flagged the last turn's response, also in tokens that a rewind has dropped."""

    def turns_before(self, position: int) -> list[Turn]:
        """The turns that stand when a step is written at `position`. The last of them is written on."""
        return [turn for turn in self.turns if turn.start < position] or self.turns[:1]

    def steps_soon(self, now_s: float) -> bool:
        """Whether a short step of it may come soon. It waits for no token while a long one is pending."""
        return now_s - self.used_s < ALONE_S and not self.pending and not self.canary

    def is_replayed(self, now_s: float) -> bool:
        """Whether a lost session is being written to it again."""
        return self.replay and now_s - self.used_s < REPLAY_GAP_S

    def open_turn(self, step: Step) -> None:
        """Takes the tokens of `step` that are of the conversation."""
        self.runs += [NO_RUNS] * step.response_start
        if not step.start:
            self.turns.append(Turn(step.position, len(self.runs)))
            self.flagged = False

    def count(self, unsafe: Flags) -> list[list[int]]:
        """Takes the next tokens of the response, of which `unsafe` count in each mode. Returns their runs in each."""
        last = self.runs[-1] if self.runs else NO_RUNS
        by_mode = [runs(flags, before=run) for flags, run in zip(unsafe, last, strict=True)]
        self.runs += zip(*by_mode, strict=True)
        return by_mode


@dataclass(eq=False)
class ActiveStep:
    """A step whose tokens are being run, `done` of them so far.

    It began at `begun_s`, and last ran at `served_s`, in `passes` so far. `asked` are the indices of the tokens whose
    logits are wanted, and `logits` has the logits of each chunk so far. After an `error`, the session holds the tokens
    before the step, or is `lost` if its slot cannot be trusted any more.
    """

    step: Step
    session: Session
    asked: list[int]
    begun_s: float
    served_s: float
    done: int = 0
    passes: int = 0
    logits: list[Logits] = field(default_factory=list)
    error: GuardError | None = None
    lost: bool = False

    @property
    def left(self) -> int:
        """The number of tokens that are still to be run; 0 after an error."""
        return 0 if self.error else len(self.step.ids) - self.done

    @property
    def is_prefill(self) -> bool:
        return self.step.opens_turn or len(self.step.ids) > STEP_TOKENS

    @property
    def must_finish(self) -> bool:
        """Whether the client cannot send this step again, because Triton ends the sequence with this request."""
        return self.step.end and not self.step.start


def check_step(step: Step, session: Session | None, context: int) -> None:
    """Checks that `session` may take a step that is not its pending one. It is None if the step's session is not known.

    Raises InvalidRequest, PositionOutOfRange, EmptyText, SessionLost or TextTooLong.
    """
    tokens = len(step.ids)
    if step.position < 0:
        raise PositionOutOfRange(f"The position {step.position} is negative.")
    if not tokens and not step.end:
        raise EmptyText("The step has no tokens.")
    if not -1 <= step.query_index < tokens or not 0 <= step.response_start <= tokens:
        raise InvalidRequest("QUERY_INDEX or RESPONSE_START points outside the step.")
    if not step.start:
        if step.policy:
            raise InvalidRequest("Only the step that opens a stream carries a policy.")
        if step.query_index >= step.response_start or (step.opens_turn and step.query_index == -1):
            raise InvalidRequest("QUERY_INDEX must point into the part of a next turn that RESPONSE_START ends.")
        _check_position(step, session)
    elif step.position:
        raise PositionOutOfRange(f"The position {step.position} leaves a gap: a stream opens at 0.")
    if step.position + tokens > context:
        raise TextTooLong(f"The stream would have {step.position + tokens} tokens; the context holds {context}.")
    room = context - step.position - step.response_start
    if step.policy and step.policy.debounce > max(room, 1):
        raise InvalidRequest(
            f"The debounce is {step.policy.debounce} tokens; the context has room for {max(room, 1)} after the prompt."
        )
    if session and step.opens_turn and not step.start and not step.end and session.policy.debounce > room:
        raise TextTooLong(
            f"The turn leaves room for {room} tokens of a response, and {session.policy.debounce} in a row are a flag."
        )


def _check_position(step: Step, session: Session | None) -> None:
    if session is None:
        raise SessionLost("The session is not known here; open it again with START and everything so far.")
    only_ends = step.end and not len(step.ids)
    if session.pending and session.pending.step.opens_turn and not only_ends:
        what = "opens the stream" if session.pending.step.start else "opens the turn"
        raise InvalidRequest(f"The step that {what} is not through: send it again until PENDING is 0.")
    held = len(session.runs)
    if step.position > held:
        raise PositionOutOfRange(f"The position {step.position} leaves a gap: the session holds {held} tokens.")
    response_start = session.turns_before(step.position)[-1].response_start
    if step.position < response_start and not only_ends:
        raise PositionOutOfRange(
            f"The position {step.position} is in the conversation; the response begins at {response_start}."
        )
