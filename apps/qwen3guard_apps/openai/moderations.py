"""OpenAI's `/v1/moderations`, answered by the guard: each input is judged as a user's prompt.

Judged by Gen where it is served, else by Stream. Categories carry Qwen3Guard's own names.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

from qwen3guard_client import AsyncGuardClient, Category, Classification, Policy
from qwen3guard_contract import thresholds, wire
from qwen3guard_contract.labels import QUERY_CATEGORY_ORDER, RiskLevel
from qwen3guard_contract.verdict import PromptVerdict

from qwen3guard_apps.openai.api_error import invalid
from qwen3guard_apps.openai.conversation import text_of_part

MAX_INPUTS = 32
AT_ONCE = 4
"""Inputs of one request that are judged at the same time."""


class Moderations:
    """`gen` tells which guard judges: True for Gen, False for Stream."""

    def __init__(self, guard: AsyncGuardClient, policy: Policy, *, gen: bool) -> None:
        self._guard = guard
        self._policy = policy
        self._gen = gen
        self.model = "qwen3guard-gen" if gen else "qwen3guard-stream"
        self.served = (wire.CLASSIFY if gen else wire.STREAM_STEP).name

    async def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """OpenAI's answer to OpenAI's request. Raises ApiError or a GuardError."""
        texts = _inputs(asked.get("input"))
        turns = asyncio.Semaphore(AT_ONCE)

        async def judge(text: str) -> dict[str, Any]:
            async with turns:
                return await (self._by_gen(text) if self._gen else self._by_stream(text))

        # Also where nobody waits any more: a session that is opened is ended.
        judging = asyncio.gather(*map(judge, texts), return_exceptions=True)
        results = []
        for found in await asyncio.shield(judging):
            if isinstance(found, BaseException):
                raise found
            results.append(found)
        return {"id": f"modr-{uuid.uuid4().hex}", "model": self.model, "results": results}

    async def _by_gen(self, text: str) -> dict[str, Any]:
        found = await self._guard.classify(text)
        return self._result(found, found.categories)

    async def _by_stream(self, text: str) -> dict[str, Any]:
        async with self._guard.stream(text, policy=self._policy) as stream:
            found = stream.prompt_verdict
        return self._result(found, (found.category,) if found.category else ())

    def _result(self, found: Classification | PromptVerdict, categories: tuple[Category, ...]) -> dict[str, Any]:
        levels = found.severity_probabilities
        counted = self._policy.unsafe_categories(found)
        scores = _scores(self._risk(levels), found.category_probabilities)
        return {
            "flagged": bool(counted),
            "categories": {each.value: each in counted for each in QUERY_CATEGORY_ORDER},
            "category_scores": {each.value: round(score, 6) for each, score in scores.items()},
            "category_applied_input_types": {each.value: ["text"] for each in QUERY_CATEGORY_ORDER},
            "guard": {
                "severity": found.severity.value,
                "categories": [each.value for each in categories],
                "probabilities": {level.value: round(value, 6) for level, value in levels.items()},
                "strict": self._unsafe(found, strict=True),
                "loose": self._unsafe(found, strict=False),
            },
        }

    def _risk(self, levels: Mapping[RiskLevel, float]) -> float:
        """1 - P(Safe), which thresholds are compared with too; in loose mode the probability of Unsafe alone."""
        if self._policy.strict or self._policy.thresholds is not None:
            return 1 - levels[RiskLevel.SAFE]
        return levels[RiskLevel.UNSAFE]

    def _unsafe(self, found: Classification | PromptVerdict, *, strict: bool) -> bool:
        """Whether the level counts, in any category that it may have where an answer broke off before it named one."""
        named = thresholds.categories(found)
        return any(self._policy.is_unsafe_level(found.severity, each, strict=strict) for each in named)


def _scores(risk: float, probabilities: Mapping[Any, float]) -> dict[Category, float]:
    """`risk` shared over the categories as they are likely, the answer `None` left out; each has all of it where no
    category has a probability."""
    likely = {each: probabilities.get(each, 0.0) for each in QUERY_CATEGORY_ORDER}
    total = sum(likely.values())
    return {each: risk * value / total if total > 0 else risk for each, value in likely.items()}


def _inputs(given: Any) -> list[str]:
    """A text, a list of texts, or one input in parts. Raises ApiError for images and token ids."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise invalid("The input must be a text, or a list of texts.")
    if len(given) > MAX_INPUTS:
        raise invalid(f"There are {len(given)} inputs; a request takes {MAX_INPUTS}.")
    if all(isinstance(each, str) for each in given):
        return list(given)
    return ["".join(text_of_part(each, "The input") for each in given)]
