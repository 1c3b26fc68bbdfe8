"""Requests with many texts beside each other, and a guard that lets few wait, as it does after an overload."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from qwen3guard_apps.openai import batches
from qwen3guard_apps.openai.batches import AT_ONCE, Batches
from qwen3guard_contract.errors import Overloaded


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "AGAIN_S", 0.001)


@dataclass
class Guard:
    """It refuses whoever comes while `most` are judged."""

    most: int
    now: int = 0
    seen: int = 0
    asked: int = 0

    async def judge(self, text: str) -> str:
        self.asked += 1
        if self.now >= self.most:
            raise Overloaded("Too much.")
        self.now += 1
        self.seen = max(self.seen, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        return text.upper()


def texts(of: int, count: int = 32) -> list[str]:
    return [f"text {of} {number}" for number in range(count)]


@pytest.mark.parametrize("most", [1, 2, 100])
def test_requests_beside_each_other_are_all_answered(most: int) -> None:
    guard, shared = Guard(most), Batches(60)

    async def ask() -> list[list[str | BaseException]]:
        return await asyncio.gather(*(shared.judge(guard.judge, texts(of)) for of in range(4)))

    assert asyncio.run(ask()) == [[text.upper() for text in texts(of)] for of in range(4)]
    assert guard.seen <= AT_ONCE


def test_a_guard_that_stays_overloaded_ends_the_whole_request_once() -> None:
    guard = Guard(0)
    found = asyncio.run(Batches(0.05).judge(guard.judge, texts(0)))
    assert {type(each) for each in found} == {Overloaded}
    assert AT_ONCE < guard.asked < 100


def test_a_lone_text_waits_for_nobody_and_is_asked_once() -> None:
    guard, shared = Guard(AT_ONCE), Batches(60)

    async def ask() -> list[str | BaseException]:
        many = asyncio.create_task(shared.judge(guard.judge, texts(0)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert guard.now == AT_ONCE
        found = await shared.judge(guard.judge, ["lone"])
        guard.most = 5
        found += await shared.judge(guard.judge, ["lone"])
        await many
        return found

    refused, answered = asyncio.run(ask())
    assert isinstance(refused, Overloaded)
    assert answered == "LONE"


def test_nothing_is_begun_for_a_caller_that_has_left_and_what_was_begun_ends() -> None:
    guard, shared = Guard(100), Batches(60)

    async def ask() -> None:
        asking = asyncio.create_task(shared.judge(guard.judge, texts(0)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await shared.judge(guard.judge, texts(1, 8))

    asyncio.run(ask())
    assert (guard.now, guard.asked) == (0, AT_ONCE + 8)


def test_a_few_texts_wait_for_no_other_request_that_has_many() -> None:
    """Its texts have their turns between those of the other."""
    guard, shared = Guard(100), Batches(60)

    async def ask() -> int:
        many = asyncio.create_task(shared.judge(guard.judge, texts(0, 400)))
        await asyncio.sleep(0.005)
        before = guard.asked
        assert await shared.judge(guard.judge, ["a", "b"]) == ["A", "B"]
        asked = guard.asked - before
        await many
        return asked

    assert asyncio.run(ask()) <= 4 * AT_ONCE
