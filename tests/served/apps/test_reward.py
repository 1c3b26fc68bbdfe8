"""The reward: its formula by hand, its order, its errors, and a server behind it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from qwen3guard_apps.reward import reward, reward_async, score
from qwen3guard_client import GuardClient
from qwen3guard_contract import errors
from qwen3guard_server.server import EmbeddedServer
from support.texts import TEXTS


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
        mixed: list[Any] = [("Hi.", "Hello."), bad, ("Hi.", "Hello.")]
        with pytest.raises(error, match=r"^Conversation 1: "):
            reward(mixed, url=server.url)
        found = reward(mixed, url=server.url, bad=-1.0)
        assert found[1] == -1.0
        assert found[0] == pytest.approx(found[2], abs=1e-5)
