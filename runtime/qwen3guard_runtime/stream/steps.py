"""One step of a stream: what it writes, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from qwen3guard_contract.labels import QUERY_CATEGORY_ORDER, RESPONSE_CATEGORY_ORDER
from qwen3guard_contract.policy import Policy

from qwen3guard_runtime.engine.runner import Ids, Logits
from qwen3guard_runtime.stream.verdicts import TokenJudgements, judge


@dataclass(frozen=True)
class Step:
    """`ids` to write at `position`. Tokens from index `response_start` on are judged as the response;
    the prompt is judged at index `query_index` (-1: not in this step). `policy` None is the server's own."""

    session: int | str
    ids: Ids
    position: int
    start: bool = False
    end: bool = False
    query_index: int = -1
    response_start: int = 0
    policy: Policy | None = None

    def same_as(self, other: Step) -> bool:
        mine, theirs = (
            (step.position, step.start, step.end, step.query_index, step.response_start, step.policy)
            for step in (self, other)
        )
        return mine == theirs and np.array_equal(self.ids, other.ids)


class Flags(NamedTuple):
    """One decision a row, in either mode and the session's own."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]
    own: tuple[bool, ...]

    @classmethod
    def of(cls, policy: Policy, found: TokenJudgements) -> Flags:
        """Of each row by itself: nothing of the rows before it."""
        strict, loose = (
            tuple(policy.is_unsafe_level(level, category, strict=mode) for level, category, _ in found.rows())
            for mode in (True, False)
        )
        return cls(strict, loose, tuple(policy.is_unsafe(*row) for row in found.rows()))


@dataclass(frozen=True)
class StepReply:
    """The judged tokens of a step with their decisions; `run` is their run by the session's own policy.

    `prompt` has one row, or none. While `pending` tokens of the step are not taken yet, nothing is judged, and
    `length` is where the step began.
    """

    length: int
    pending: int
    response: TokenJudgements
    flags: Flags
    run: tuple[int, ...]
    prompt: TokenJudgements
    prompt_flags: Flags


def judgements(step: Step, asked: Sequence[int], found: Sequence[Logits]) -> tuple[TokenJudgements, TokenJudgements]:
    """Of the response's tokens and of the prompt, from the logits of all chunks at the tokens `asked`."""
    outputs = (
        [np.concatenate(parts) for parts in zip(*found, strict=True)]
        if asked
        else [np.zeros((0, width), np.float32) for width in (3, 8, 3, 9)]
    )
    judged = [number for number, index in enumerate(asked) if index >= step.response_start]
    queried = [number for number, index in enumerate(asked) if index == step.query_index]
    return (
        judge(outputs[0][judged], outputs[1][judged], RESPONSE_CATEGORY_ORDER),
        judge(outputs[2][queried], outputs[3][queried], QUERY_CATEGORY_ORDER),
    )
