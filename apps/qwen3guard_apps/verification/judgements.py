"""What a guard says about one text, in a form that two of its exports can be compared in. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.labels import RISK_ORDER, Category, Refusal
from qwen3guard_runtime.stream.verdicts import TokenJudgements

from qwen3guard_apps.evaluation.judged import MODES, first_flag

LevelProbabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Judgements:
    """The judgements of one text. Gen has one, of the last turn. Stream has one of the prompt, and one of each token of
    the response.

    `risk` is float32 [judgements, 3] in RISK_ORDER: for Gen the probabilities of the levels after "Safety:", also
    where its answer begins in another way. `categories` has those of each judgement, or None for a Gen answer that
    cannot be read to its end. `flags` has, in each mode, the decisions on the prompt and the response: for Gen one of
    them. `answer` is Gen's own text.
    """

    risk: LevelProbabilities
    categories: tuple[frozenset[Category] | None, ...]
    flags: dict[str, tuple[bool, ...]]
    refusal: Refusal | None = None
    answer: str | None = None
    readable: bool = True


@dataclass(frozen=True)
class Tokenized:
    """A text as the guard reads it: token ids int64 [tokens].

    Gen answers after them, in `response_mode` about a response. Stream judges the prompt at the token `query_index`,
    and each token from `response_start` on as the response.
    """

    ids: npt.NDArray[np.int64]
    response_mode: bool = False
    query_index: int = -1
    response_start: int = 0


def gen_judged(
    risk: LevelProbabilities,
    answer: str,
    categories: Sequence[Category] | None,
    refusal: Refusal | None,
    *,
    readable: bool,
) -> Judgements:
    """Gen's judgement by the probabilities `risk` [3] of the levels. `categories` are None where they cannot be
    read."""
    level = RISK_ORDER[int(risk.argmax())]
    named = None if categories is None else frozenset(categories)
    flags: dict[str, tuple[bool, ...]] = {mode: (level.is_unsafe(strict=mode == "strict"),) for mode in MODES}
    return Judgements(risk[None].astype(np.float32), (named,), flags, refusal, answer, readable)


def stream_judged(prompt: TokenJudgements, response: TokenJudgements) -> Judgements:
    """Stream's judgements: one of the prompt, and those of the response's tokens, which may be none."""
    categories = [frozenset() if each is None else frozenset({each}) for each in (*prompt.category, *response.category)]
    flags = {}
    for mode in MODES:
        strict = mode == "strict"
        decisions = [level.is_unsafe(strict=strict) for level in prompt.risk]
        if response.risk:
            decisions.append(first_flag(response.risk, response.category, strict=strict) is not None)
        flags[mode] = tuple(decisions)
    risk = np.concatenate([prompt.risk_probabilities, response.risk_probabilities])
    return Judgements(risk, tuple(categories), flags)
