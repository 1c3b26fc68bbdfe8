"""An answer moderated in the conversation that it answers, whose last message may be its beginning."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable

from qwen3guard_client import AsyncGuardClient, Policy

from qwen3guard_apps.openai.conversation import Conversation


async def cleared_text(
    guard: AsyncGuardClient, policy: Policy | None, asked: Conversation, written: AsyncIterable[str]
) -> AsyncIterator[str]:
    """What is cleared of an answer, without its beginning. Raises Flagged, or another GuardError."""
    begun = len(asked.begun)
    source = _begun_with(asked.begun, written)
    async for segment in guard.moderate(source, messages=asked.messages, policy=policy, on_flag="raise"):
        yield str(segment)[begun:]
        begun = max(0, begun - len(str(segment)))


async def judge_answers(url: str, policy: Policy | None, answers: Iterable[tuple[Conversation, str]]) -> None:
    """Raises Flagged, or another GuardError. Of an answer without text, the prompt alone is judged."""
    async with AsyncGuardClient(url) as guard:
        for asked, answer in answers:
            async for _ in cleared_text(guard, policy, asked, _begun_with(answer, None)):
                pass


async def _begun_with(begun: str, written: AsyncIterable[str] | None) -> AsyncIterator[str]:
    yield begun
    if written is not None:
        async for piece in written:
            yield piece
