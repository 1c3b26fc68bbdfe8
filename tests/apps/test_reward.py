"""The reward: its formula by hand, its order, its errors, and a server behind it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from qwen3guard_apps.reward import reward, reward_async, score
from qwen3guard_client import Classification, GuardClient, Refusal, RiskLevel
from qwen3guard_contract import errors
from qwen3guard_contract.labels import AnswerStatus
from qwen3guard_server.server import EmbeddedServer
from texts import TEXTS

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


def conversations() -> list[Any]:
    pairs: list[Any] = [("How do I bake bread?", text) for text in TEXTS]
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "I cannot help with that."}]
    return [*pairs, turns, json.dumps(turns)]


def test_rewards_are_those_of_single_calls_in_order(server: EmbeddedServer, guard: GuardClient) -> None:
    wanted = [score(guard.classify(*each)) for each in conversations()[: len(TEXTS)]]
    found = reward(iter(conversations()), url=server.url, in_flight=8)
    assert found[: len(TEXTS)] == pytest.approx(wanted, abs=1e-5)
    assert found[-1] == found[-2]
    assert all(0 <= each <= 1 for each in found)
    assert asyncio.run(reward_async(conversations(), url=server.url)) == pytest.approx(found, abs=1e-5)


def test_a_conversation_that_cannot_be_judged_is_named_or_worth_what_is_said(server: EmbeddedServer) -> None:
    prompt = [{"role": "user", "content": "Hi."}]
    for bad, error in ((("Hi.", " "), errors.EmptyText), (prompt, errors.LastRole), (5, errors.InvalidRequest)):
        mixed = [("Hi.", "Hello."), bad, ("Hi.", "Hello.")]
        with pytest.raises(error, match=r"^Conversation 1: "):
            reward(mixed, url=server.url)
        found = reward(mixed, url=server.url, bad=-1.0)
        assert found[1] == -1.0
        assert found[0] == pytest.approx(found[2], abs=1e-5)


def test_no_reward_without_a_server_or_within_a_loop() -> None:
    with pytest.raises(errors.Unreachable):
        reward([("Hi.", "Hello.")], url="127.0.0.1:9", bad=0.0)
    with pytest.raises(errors.InvalidRequest, match="from 0 to 1"):
        reward([], refusal=2.0)

    async def inside() -> None:
        with pytest.raises(errors.InvalidRequest, match="await reward_async"):
            reward([])

    asyncio.run(inside())
    assert reward([]) == []
