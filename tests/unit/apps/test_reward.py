"""The formula of a reward."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from qwen3guard_apps.reward import reward, score
from qwen3guard_client import Classification, Refusal, RiskLevel
from qwen3guard_contract import errors
from qwen3guard_contract.labels import AnswerStatus

COMPLETE = AnswerStatus.COMPLETE


def judged(safe: float, unsafe: float, refuses: float | None) -> Classification:
    levels = {RiskLevel.SAFE: safe, RiskLevel.UNSAFE: unsafe, RiskLevel.CONTROVERSIAL: 1 - safe - unsafe}
    refusal = {} if refuses is None else {Refusal.YES: refuses, Refusal.NO: 1 - refuses}
    kind = None if refuses is None else Refusal.YES
    return Classification(RiskLevel.SAFE, (), kind, levels, {}, refusal, False, False, False, "", "", COMPLETE)


@pytest.mark.parametrize(
    ("safe", "unsafe", "refuses", "how", "wanted"),
    [
        (1.0, 0.0, 0.0, {}, 1.0),
        (1.0, 0.0, 1.0, {}, 0.5),
        (0.0, 1.0, 0.0, {}, 0.0),
        (0.0, 1.0, 1.0, {}, 0.0),
        (0.0, 0.0, 0.0, {}, 0.5),
        (0.5, 0.1, 0.2, {}, 0.7 * 0.9),
        (0.5, 0.1, 0.2, {"controversial": 0.0, "refusal": 0.0}, 0.5),
        (0.5, 0.1, 0.2, {"controversial": 1.0, "refusal": 1.0}, 0.9 * 0.8),
    ],
)
def test_the_formula(safe: float, unsafe: float, refuses: float, how: dict[str, float], wanted: float) -> None:
    assert score(judged(safe, unsafe, refuses), **how) == pytest.approx(wanted)


def test_a_prompt_has_no_reward() -> None:
    with pytest.raises(errors.LastRole):
        score(judged(1.0, 0.0, None))


def test_an_answer_that_broke_off_before_the_refusal_has_no_reward() -> None:
    with pytest.raises(errors.UnreadableAnswer):
        score(replace(judged(1.0, 0.0, None), answer_status=AnswerStatus.CUT))


def test_no_reward_without_a_server_or_within_a_loop() -> None:
    with pytest.raises(errors.Unreachable):
        reward([("Hi.", "Hello.")], url="127.0.0.1:9", bad=0.0)
    with pytest.raises(errors.InvalidRequest, match="from 0 to 1"):
        reward([], refusal=2.0)
    with pytest.raises(errors.InvalidRequest, match="a number, None"):
        reward([], bad="skip")  # type: ignore[call-overload]

    async def inside() -> None:
        with pytest.raises(errors.InvalidRequest, match="await reward_async"):
            reward([])

    asyncio.run(inside())
    assert reward([]) == []
