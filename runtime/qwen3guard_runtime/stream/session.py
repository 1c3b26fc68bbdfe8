"""One live stream and the step that it takes: what is held, and whether a step may be taken."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen3guard_contract.errors import (
    EmptyText,
    GuardError,
    InvalidRequest,
    PositionOutOfRange,
    SessionLost,
    TextTooLong,
)
from qwen3guard_contract.policy import Policy

from qwen3guard_runtime.engine.kv_cache import Slot
from qwen3guard_runtime.engine.runner import STEP_TOKENS, Logits
from qwen3guard_runtime.stream.steps import Step


@dataclass(frozen=True)
class SessionLimits:
    """Sessions idle for `idle_s` seconds are forgotten; for room, only ones idle for `evict_s`.

    A long step is run in chunks of up to `chunk_tokens`; it leaves the others waiting no longer than `turn_s`.
    """

    idle_s: float
    evict_s: float
    turn_s: float
    chunk_tokens: int


@dataclass(eq=False)
class Session:
    """`begins` is where the conversation ends and the response begins."""

    slot: Slot
    policy: Policy
    used_s: float
    begins: int
    runs: list[tuple[int, ...]] = field(default_factory=list)
    """For each token held, its run in strict and in loose mode and by the session's own policy; 0 for tokens that are
    not of the response."""
    pending: Work | None = None
    flagged: bool = False
    """By its own policy, in the response so far or before a rewind."""


@dataclass(eq=False)
class Work:
    """One step, begun at `begun_s` and taken up to its token `done`, last at `served_s`; `found` has the logits of its
    chunks so far. With an `error`, the session is what it was, or `lost` where its slot cannot be trusted."""

    step: Step
    session: Session
    asked: list[int]
    begun_s: float
    served_s: float
    done: int = 0
    found: list[Logits] = field(default_factory=list)
    error: GuardError | None = None
    lost: bool = False

    @property
    def left(self) -> int:
        return 0 if self.error else len(self.step.ids) - self.done

    @property
    def is_prefill(self) -> bool:
        return self.step.start or len(self.step.ids) > STEP_TOKENS

    @property
    def must_finish(self) -> bool:
        """Triton ends the sequence with this very request: it cannot be sent again."""
        return self.step.end and not self.step.start


def check_step(step: Step, session: Session | None, context: int) -> None:
    """Whether `session`, None where there is none of its name, may take a step that is not its pending one.

    Raises InvalidRequest, PositionOutOfRange, EmptyText, SessionLost or TextTooLong.
    """
    tokens = len(step.ids)
    if step.position < 0:
        raise PositionOutOfRange(f"The position {step.position} is negative.")
    if not tokens and not step.end:
        raise EmptyText("The step has no tokens.")
    if not -1 <= step.query_index < tokens or not 0 <= step.response_start <= tokens:
        raise InvalidRequest("QUERY_INDEX or RESPONSE_START points outside the step.")
    if step.policy and not step.start:
        raise InvalidRequest("Only the step that opens a stream carries a policy.")
    if not step.start:
        _check_place(step, session)
    elif step.position:
        raise PositionOutOfRange(f"The position {step.position} leaves a gap: a stream opens at 0.")
    if step.position + tokens > context:
        raise TextTooLong(f"The stream would have {step.position + tokens} tokens; the context holds {context}.")


def _check_place(step: Step, session: Session | None) -> None:
    if session is None:
        raise SessionLost("The session is not known here; open it again with START and everything so far.")
    gives_up = step.end and not len(step.ids)
    if session.pending and session.pending.step.start and not gives_up:
        raise InvalidRequest("The step that opens the stream is not through: send it again until PENDING is 0.")
    held = len(session.runs)
    if step.position > held:
        raise PositionOutOfRange(f"The position {step.position} leaves a gap: the session holds {held} tokens.")
    if step.position < session.begins and not gives_up:
        raise PositionOutOfRange(
            f"The position {step.position} is in the conversation; the response begins at {session.begins}."
        )
