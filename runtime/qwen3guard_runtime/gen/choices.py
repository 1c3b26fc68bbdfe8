"""What a pass tells about the token that comes after one of its tokens: what the graph chose of its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qwen3guard_contract.errors import InternalError

from qwen3guard_runtime.engine.logits import Floats, not_finite
from qwen3guard_runtime.engine.runner import Logits


@dataclass(frozen=True)
class Choice:
    """One row of a graph's outputs (`manifest.GEN_CHOICES`). `places` has the index of each candidate in it."""

    chosen: Floats
    candidate_logits: Floats
    places: Mapping[int, int]

    @property
    def error(self) -> InternalError | None:
        """An error if a logit is not finite: then nothing else here means anything."""
        return not_finite([self.chosen, self.candidate_logits])

    @property
    def token(self) -> int:
        """The likeliest token."""
        return int(self.chosen[0])

    @property
    def logprob(self) -> float:
        """The log-probability of `token`."""
        return float(self.chosen[2])

    def logits_of(self, ids: Sequence[int]) -> Floats:
        """The logits of some candidates."""
        return self.candidate_logits[[self.places[each] for each in ids]]

    def logprobs_of(self, ids: Sequence[int]) -> list[float]:
        """The log-probabilities of some candidates."""
        above = self.logprob - float(self.chosen[1])
        return [above + float(logit) for logit in self.logits_of(ids)]


def choices(outputs: Logits, candidates: Sequence[int]) -> list[Choice]:
    """One choice for each asked token of a row. `candidates` are the ids that the graph was given."""
    places = {id_: place for place, id_ in enumerate(candidates)}
    return [Choice(chosen, logits, places) for chosen, logits in zip(*outputs, strict=True)]
