"""OpenAI's `/v1/moderations`, answered by Gen or by Stream: each input is judged as a user's prompt.

Categories have Qwen3Guard's own names.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from qwen3guard_client import AsyncGuardClient, Category, Classification, Policy
from qwen3guard_contract import thresholds, wire
from qwen3guard_contract.errors import InputError
from qwen3guard_contract.labels import QUERY_CATEGORY_ORDER, RiskLevel
from qwen3guard_contract.message_text import text_of_message
from qwen3guard_contract.text import shown
from qwen3guard_contract.verdict import PromptVerdict

from qwen3guard_apps.openai.api_error import invalid
from qwen3guard_apps.openai.batches import Batches
from qwen3guard_apps.openai.readers import Apart, at_once

MAX_INPUTS = 32


class Moderations:
    """Answers requests by `policy`. Gen judges if `gen` is true, else Stream; `served` is that guard's ensemble."""

    def __init__(self, guard: AsyncGuardClient, policy: Policy, batches: Batches, *, gen: bool) -> None:
        self._guard = guard
        self._batches = batches
        self._policy = policy
        self._gen = gen
        self.model = "qwen3guard-gen" if gen else "qwen3guard-stream"
        self.served = (wire.CLASSIFY if gen else wire.STREAM_STEP).name

    async def answer(self, request: Mapping[str, Any], apart: Apart = at_once) -> dict[str, Any]:
        """The response to `request`, both as in OpenAI's API; `apart` reads it. Raises ApiError or a GuardError.

        If the guard refuses one of several inputs, the error says which.
        """
        texts = await apart(partial(_inputs, request))
        judged = await self._batches.judge(self._by_gen if self._gen else self._by_stream, texts)
        results = []
        for number, result in enumerate(judged, start=1):
            if isinstance(result, InputError) and len(texts) > 1:
                raise type(result)(f"Input {number} of {len(texts)}: {result}")
            if isinstance(result, BaseException):
                raise result
            results.append(result)
        return {"id": f"modr-{uuid.uuid4().hex}", "model": self.model, "results": results}

    async def _by_gen(self, text: str) -> dict[str, Any]:
        verdict = await self._guard.classify(text)
        return self._result(verdict, verdict.categories)

    async def _by_stream(self, text: str) -> dict[str, Any]:
        async with self._guard.stream(text, policy=self._policy) as stream:
            verdict = stream.prompt_verdict
        return self._result(verdict, (verdict.category,) if verdict.category else ())

    def _result(self, verdict: Classification | PromptVerdict, categories: tuple[Category, ...]) -> dict[str, Any]:
        levels = verdict.severity_probabilities
        unsafe = self._policy.unsafe_categories(verdict)
        scores = _scores(self._risk(levels), verdict.category_probabilities)
        return {
            "flagged": bool(unsafe),
            "categories": {each.value: each in unsafe for each in QUERY_CATEGORY_ORDER},
            "category_scores": {each.value: round(score, 6) for each, score in scores.items()},
            "category_applied_input_types": {each.value: ["text"] for each in QUERY_CATEGORY_ORDER},
            "guard": {
                "severity": verdict.severity.value,
                "categories": [each.value for each in categories],
                "probabilities": {level.value: round(value, 6) for level, value in levels.items()},
                "strict": self._unsafe(verdict, strict=True),
                "loose": self._unsafe(verdict, strict=False),
            },
        }

    def _risk(self, levels: Mapping[RiskLevel, float]) -> float:
        """1 - P(Safe) in strict mode and where thresholds decide, which bound it; P(Unsafe) in loose mode."""
        if self._policy.strict or self._policy.thresholds is not None:
            return 1 - levels[RiskLevel.SAFE]
        return levels[RiskLevel.UNSAFE]

    def _unsafe(self, verdict: Classification | PromptVerdict, *, strict: bool) -> bool:
        """Whether the level counts as unsafe, in any of the verdict's categories.

        An answer that broke off before it named a category may have any.
        """
        named = thresholds.categories(verdict)
        return any(self._policy.is_unsafe_level(verdict.severity, each, strict=strict) for each in named)


def _scores(risk: float, probabilities: Mapping[Any, float]) -> dict[Category, float]:
    """`risk` divided among the categories in proportion to their probabilities, without that of the answer `None`.

    Every category gets all of `risk` where none has a probability.
    """
    likely = {each: probabilities.get(each, 0.0) for each in QUERY_CATEGORY_ORDER}
    total = sum(likely.values())
    return {each: risk * value / total if total > 0 else risk for each, value in likely.items()}


def _inputs(request: Mapping[str, Any]) -> list[str]:
    """The texts to judge, of a text, a list of texts, or one input in parts.

    Raises ApiError for images, for token ids, and for a field that is not read.
    """
    for name, value in request.items():
        if name not in ("input", "model", "user") and value is not None:
            raise invalid(f"The request has a field {shown(name)}, which is not read.")
        if name in ("model", "user") and not isinstance(value, str | None):
            raise invalid(f"The field {name} must be a text.")
    value = request.get("input")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise invalid("The input must be a text, or a list of texts.")
    if len(value) > MAX_INPUTS:
        raise invalid(f"There are {len(value)} inputs; a request takes {MAX_INPUTS}.")
    if all(isinstance(each, str) for each in value):
        return list(value)
    return [text_of_message({"role": "user", "content": value}, "The input")]
