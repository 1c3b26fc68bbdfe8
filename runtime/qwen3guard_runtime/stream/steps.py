"""One step of a stream: the tokens that it writes, and the reply to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from qwen3guard_contract.labels import QUERY_CATEGORY_ORDER, RESPONSE_CATEGORY_ORDER
from qwen3guard_contract.policy import Policy

from qwen3guard_runtime.engine.kv_cache import Ids
from qwen3guard_runtime.engine.runner import Logits
from qwen3guard_runtime.request import never
from qwen3guard_runtime.stream.verdicts import TokenJudgements, judge


@dataclass(frozen=True)
class Step:
    """Writes `ids` (int64 [tokens]) at `position` of a session.

    Tokens from index `response_start` on are judged as the response. The tokens before it open a turn: they are of the
    conversation. The prompt is judged at the token with index `query_index`, or not in this step if it is -1. Without a
    `policy`, the server's own applies. What is held for the `scope` is not computed again. No session is forgotten to
    make room for a `canary`. A `replay` writes what a lost session held. Before each chunk of a long step,
    `is_abandoned` is asked.
    """

    session: int | str
    ids: Ids
    position: int
    start: bool = False
    end: bool = False
    query_index: int = -1
    response_start: int = 0
    policy: Policy | None = None
    scope: str | None = None
    canary: bool = False
    replay: bool = False
    is_abandoned: Callable[[], bool] = never

    @property
    def opens_turn(self) -> bool:
        """Whether it opens the stream, or goes on with the user's next turn."""
        return self.start or self.response_start > 0

    @property
    def asked(self) -> list[int]:
        """The indices of the tokens whose logits are wanted, ascending."""
        return sorted({*range(self.response_start, len(self.ids)), *([self.query_index] * (self.query_index >= 0))})

    def same_as(self, other: Step) -> bool:
        """Whether this is the same step, sent again."""
        one_fields, other_fields = (
            (step.position, step.start, step.end, step.query_index, step.response_start, step.policy)
            for step in (self, other)
        )
        return one_fields == other_fields and np.array_equal(self.ids, other.ids)


class Flags(NamedTuple):
    """The decisions on each row: in strict mode, in loose mode, and by the session's own policy."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]
    own: tuple[bool, ...]

    @classmethod
    def of(cls, policy: Policy, judgements: TokenJudgements) -> Flags:
        """Decides each row by itself, without debounce."""
        strict, loose = (
            tuple(policy.is_unsafe_level(level, category, strict=mode) for level, category, _ in judgements.rows())
            for mode in (True, False)
        )
        return cls(strict, loose, tuple(policy.is_unsafe(*row) for row in judgements.rows()))


@dataclass(frozen=True)
class StepReply:
    """The judgements of a step's tokens, and the decisions on them.

    `length` is the number of tokens that the session now holds, and `run` the run of each token by the session's own
    policy. `prompt` has one row or none. While `pending` tokens of the step are not run yet, nothing is judged, and
    `length` is the position of the step.
    """

    length: int
    pending: int
    response: TokenJudgements
    flags: Flags
    run: tuple[int, ...]
    prompt: TokenJudgements
    prompt_flags: Flags


def judge_step(step: Step, asked: Sequence[int], logits: Sequence[Logits]) -> tuple[TokenJudgements, TokenJudgements]:
    """The judgements of the response's tokens, and of the prompt.

    `logits` has for each chunk of the step the outputs of the graph (STREAM_OUTPUTS) at the tokens `asked` in it.
    """
    outputs = (
        [np.concatenate(parts) for parts in zip(*logits, strict=True)]
        if asked
        else [np.zeros((0, width), np.float32) for width in (3, 8, 3, 9)]
    )
    response_rows = [row for row, index in enumerate(asked) if index >= step.response_start]
    prompt_rows = [row for row, index in enumerate(asked) if index == step.query_index]
    return (
        judge(outputs[0][response_rows], outputs[1][response_rows], RESPONSE_CATEGORY_ORDER),
        judge(outputs[2][prompt_rows], outputs[3][prompt_rows], QUERY_CATEGORY_ORDER),
    )
