"""The reward: its formula by hand, its order, its errors, and a server behind it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from qwen3guard_apps.reward import reward, reward_async, score, trl_reward
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
        alike: list[Any] = [bad, bad]
        with pytest.raises(error, match=r"^Conversation 1: "):
            reward(mixed, url=server.url)
        found = reward(mixed, url=server.url, bad=-1.0)
        assert found[1] == -1.0
        assert found[0] == pytest.approx(found[2], abs=1e-5)
        assert reward(mixed, url=server.url, bad=None) == [found[0], None, found[2]]
        with pytest.raises(error, match=r"^None of 2 conversations can be judged. Conversation 0: "):
            reward(alike, url=server.url, bad=0.0)


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_conversational_data_has_the_rewards_of_its_texts(server: EmbeddedServer) -> None:
    """Called as TRL calls it."""
    prompts, completions = ["How do I bake bread?"] * 2, ["Mix flour and water.", "I cannot help with that."]
    function = trl_reward(url=server.url)
    told: dict[str, Any] = {"completion_ids": [[1], [2]], "trainer_state": None, "log_metric": print, "level": [1, 2]}
    plain = function(prompts=prompts, completions=completions, **told)
    chats = {
        "prompts": [[turn("user", each)] for each in prompts],
        "completions": [[turn("assistant", each)] for each in completions],
    }
    assert plain == reward(list(zip(prompts, completions, strict=True)), url=server.url)
    assert all(plain)
    assert function(**chats, **told) == plain
    parts = [[turn("assistant", [{"type": "text", "text": each}])] for each in completions]
    assert function(prompts=chats["prompts"], completions=parts) == plain
    assert function(prompts=prompts, completions=chats["completions"]) == plain
    assert function(prompts=chats["prompts"], completions=completions) == plain

    async def within_a_loop() -> Any:
        return function(prompts=prompts, completions=completions)

    assert asyncio.run(within_a_loop()) == plain


def test_a_trl_reward_of_what_cannot_be_judged(server: EmbeddedServer) -> None:
    prompts = [[turn("user", "Hi.")]] * 3
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    completions = [[turn("assistant", each)] for each in ("Hello.", " ", image)]
    first, *others = trl_reward(url=server.url)(prompts=prompts, completions=completions)
    assert first
    assert others == [0.0, 0.0]
    assert trl_reward(url=server.url, bad=None)(prompts=prompts, completions=completions) == [first, None, None]
    with pytest.raises(errors.InputError, match=r"^Conversation [12]: "):
        trl_reward(url=server.url, bad="raise")(prompts=prompts, completions=completions)
    with pytest.raises(errors.InvalidMessages, match="None of 3"):
        trl_reward(url=server.url)(prompts=prompts, completions=[completions[2]] * 3)
    with pytest.raises(errors.InvalidRequest, match="3 prompts and 1 completions"):
        trl_reward(url=server.url)(prompts=prompts, completions=completions[:1])
