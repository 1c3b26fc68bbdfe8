"""What a pass tells about the token that comes after one of its tokens.

That is all logits, or on a GPU, from which logits do not come back, the choice that the graph made of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from qwen3guard_contract.errors import InternalError

from qwen3guard_runtime.engine.logits import Floats, not_finite
from qwen3guard_runtime.engine.runner import Logits


class Choice(Protocol):
    @property
    def error(self) -> InternalError | None:
        """An error if a logit is not finite: then nothing else here means anything."""

    @property
    def token(self) -> int:
        """The likeliest token."""

    @property
    def logprob(self) -> float:
        """The log-probability of `token`."""

    def logits_of(self, ids: Sequence[int]) -> Floats:
        """The logits of the tokens `ids`, or all of them less one number."""

    def logprobs_of(self, ids: Sequence[int]) -> list[float]:
        """The log-probabilities of the tokens `ids`."""


@dataclass(frozen=True)
class ChoiceOfLogits:
    """Made of `logits` [vocab] when it is asked for, because most of a wrong draft's tokens are never looked at."""

    logits: Floats

    @property
    def error(self) -> InternalError | None:
        return not_finite([self.logits])

    @cached_property
    def token(self) -> int:
        return int(self.logits.argmax())

    @cached_property
    def logprob(self) -> float:
        return log_probability(self.logits, self.token)

    def logits_of(self, ids: Sequence[int]) -> Floats:
        return self.logits[list(ids)]

    def logprobs_of(self, ids: Sequence[int]) -> list[float]:
        above = self.logprob - float(self.logits[self.token])
        return [above + float(self.logits[each]) for each in ids]


@dataclass(frozen=True)
class ChoiceOfGraph:
    """One row of a graph's outputs (`manifest.GEN_CHOICES`). `places` has the index of each candidate in it."""

    chosen: Floats
    candidate_logprobs: Floats
    places: Mapping[int, int]

    @property
    def error(self) -> InternalError | None:
        return not_finite([self.chosen, self.candidate_logprobs])

    @property
    def token(self) -> int:
        return int(self.chosen[0])

    @property
    def logprob(self) -> float:
        return float(self.chosen[1])

    def logits_of(self, ids: Sequence[int]) -> Floats:
        return self.candidate_logprobs[[self.places[each] for each in ids]]

    def logprobs_of(self, ids: Sequence[int]) -> list[float]:
        return [float(logprob) for logprob in self.logits_of(ids)]


def choices(outputs: Logits, candidates: Sequence[int]) -> list[Choice]:
    """One choice for each asked token of a row. `candidates` are the ids that the graph was given, if it chooses."""
    if len(outputs) == 1:
        return [ChoiceOfLogits(row) for row in outputs[0]]
    places = {id_: place for place, id_ in enumerate(candidates)}
    return [ChoiceOfGraph(chosen, logprobs, places) for chosen, logprobs in zip(*outputs, strict=True)]


def log_probability(logits: Floats, token: int) -> float:
    """Returns log softmax(logits)[token], for logits [vocab]."""
    shifted = logits - logits[token]
    peak = float(shifted.max())
    return -peak - float(np.log(np.exp(shifted - peak).sum(dtype=np.float64)))
