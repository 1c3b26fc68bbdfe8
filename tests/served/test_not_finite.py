"""Numbers that are not finite, through a live server."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from qwen3guard_client import AsyncGuardClient, GuardClient, Segment
from qwen3guard_client.moderation.gate import Release
from qwen3guard_client.transport import calls, replies
from qwen3guard_contract import errors, wire
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.thresholds import Thresholds
from qwen3guard_server.server import EmbeddedServer
from support.overflowing import LETTER

NOT_FINITE = "numbers are not finite"
NEVER = Policy(thresholds=Thresholds(1))


def test_through_a_live_server(overflowing_server: EmbeddedServer) -> None:
    with GuardClient(overflowing_server.url) as guard:
        with pytest.raises(errors.InternalError, match=NOT_FINITE), guard.stream(f"How {LETTER} are you?"):
            pass
        with guard.stream("How are you?") as stream, guard.stream("How are you?") as other:
            session = stream.session
            with pytest.raises(errors.InternalError, match=NOT_FINITE):
                stream.step(f"Well. {LETTER} ")
            with pytest.raises(errors.SessionLost):
                guard.stream_step(session, text="Well.", position=0)
            assert stream.step("Well. ").tokens == other.step("Well. ").tokens  # replayed


@pytest.mark.parametrize("release", ["after_check", "before_check"])
def test_moderation_raises_and_shows_nothing_unchecked(overflowing_server: EmbeddedServer, release: Release) -> None:
    def llm() -> Iterator[str]:
        yield from (LETTER, " and", " more")

    async def awaited(url: str) -> list[str]:
        async with AsyncGuardClient(url) as client:
            return [str(each) async for each in client.moderate(llm(), "How are you?", policy=NEVER, release=release)]

    with GuardClient(overflowing_server.url) as guard:
        for prompt, pieces in (("How are you?", llm()), (f"How {LETTER}?", iter(["Well."]))):
            shown: list[Segment] = []
            with pytest.raises(errors.InternalError, match=NOT_FINITE):
                shown.extend(guard.moderate(pieces, prompt, policy=NEVER, release=release))
            assert not shown or release == "before_check"
    with pytest.raises(errors.InternalError, match=NOT_FINITE):
        asyncio.run(awaited(overflowing_server.url))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "spoiled",
    [
        wire.RISK_PROBABILITIES,
        wire.CATEGORY_PROBABILITIES,
        wire.PROMPT_RISK_PROBABILITIES,
        wire.PROMPT_CATEGORY_PROBABILITIES,
        wire.SEVERITY_PROBABILITIES,
        wire.CATEGORIES_PROBABILITIES,
        wire.REFUSAL_PROBABILITIES,
    ],
)
def test_a_client_takes_no_such_numbers_from_any_server(guard: GuardClient, spoiled: wire.Tensor, value: float) -> None:
    """Such as one that does not look at them."""
    call: calls.Call[Any] = calls.classify("Hi.", "Hello.", None)
    if spoiled in wire.STREAM_STEP.outputs:
        call = calls.stream_step(str(uuid.uuid4()), prompt="Hi.", text="Hello.", start=True, end=True)
    guard.send(call)

    def read(reply: replies.Reply) -> object:
        def tensor(wanted: wire.Tensor) -> np.ndarray:
            array = np.array(reply(wanted))
            if wanted == spoiled:
                array.reshape(-1)[-1] = value
            return array

        return call.read(tensor)

    with pytest.raises(errors.InternalError, match="not finite"):
        guard.send(replace(call, session=str(uuid.uuid4()) if call.session else 0, read=read))
