"""A reward for RL: how safe a response is by Gen's probabilities, and whether it refuses.

    reward = s x (1 - refusal x P(Refusal = Yes)),    s = P(Safe) + controversial x P(Controversial)

It lies in 0 to 1: near 1 for a safe answer, near 1 - `refusal` for a safe refusal, near 0 for anything unsafe. With
`controversial` = 0 and `refusal` = 0 it is P(Safe), the smooth form of the report's guard-only reward, which is 1 where
Gen says Safe and 0 elsewhere (arXiv 2510.14276, 3.5.1). That reward taught the report's model to refuse; `refusal`
counteracts this.

    rewards = reward([("How do I bake bread?", "Mix flour and water."), ...], url="127.0.0.1:8001")
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from qwen3guard_client.aio import AsyncGuardClient
from qwen3guard_client.transport import calls
from qwen3guard_client.transport.calls import Call, Messages
from qwen3guard_client.transport.connection import DEFAULT_URL
from qwen3guard_contract.errors import GuardError, InvalidRequest, LastRole, UnreadableAnswer
from qwen3guard_contract.labels import AnswerStatus, Refusal, RiskLevel
from qwen3guard_contract.verdict import Classification

from qwen3guard_apps.annotation.annotate import ROW_TIMEOUT_S, is_row_error
from qwen3guard_apps.annotation.flight import IN_FLIGHT, PATIENCE_S, Flight, in_order

RewardedConversation = tuple[str, str] | Messages | str
"""A prompt and its response, or messages in OpenAI's form (a list, or JSON text) that end with the assistant's."""
CONTROVERSIAL = 0.5
REFUSAL_REWARD = 0.5


def score(
    classification: Classification, *, controversial: float = CONTROVERSIAL, refusal: float = REFUSAL_REWARD
) -> float:
    """The reward of one judged response, by the formula of this module.

    Raises LastRole where a prompt was judged, and UnreadableAnswer where Gen's answer broke off before its refusal.
    """
    if classification.refusal is None and classification.answer_status is not AnswerStatus.COMPLETE:
        raise UnreadableAnswer("The model's answer does not say whether the response refuses.")
    if classification.refusal is None:
        raise LastRole("A reward is for a response: the last turn must be the assistant's.")
    levels = classification.severity_probabilities
    safety = levels[RiskLevel.SAFE] + controversial * levels[RiskLevel.CONTROVERSIAL]
    return safety * (1 - refusal * classification.refusal_probabilities[Refusal.YES])


def reward(conversations: Iterable[RewardedConversation], **options: Any) -> list[float]:
    """Runs `reward_async` for code without an event loop; the arguments are the same.

    Raises InvalidRequest where an event loop is running, and what `reward_async` raises.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(reward_async(conversations, **options))
    raise InvalidRequest("There is an event loop here already: await reward_async.")


async def reward_async(
    conversations: Iterable[RewardedConversation],
    *,
    url: str = DEFAULT_URL,
    controversial: float = CONTROVERSIAL,
    refusal: float = REFUSAL_REWARD,
    bad: float | None = None,
    in_flight: int = IN_FLIGHT,
    timeout_s: float = ROW_TIMEOUT_S,
    patience_s: float = PATIENCE_S,
    **connection: Any,
) -> list[float]:
    """One reward for each conversation, in order.

    `controversial` and `refusal`, from 0 to 1, are those of the formula. A conversation that cannot be judged gets the
    reward `bad`; where `bad` is None its error is raised, with the conversation's number, counted from 0. Waits up to
    `patience_s` seconds for a server that is full or restarting. `connection` holds AsyncGuardClient's `tls` and
    `token`. Raises a GuardError.
    """
    for name, value in (("controversial", controversial), ("refusal", refusal)):
        if not 0 <= value <= 1:
            raise InvalidRequest(f"{name} is {value}; it must be from 0 to 1.")
    flight = Flight(in_flight, patience_s)
    rewards: list[float] = []
    async with AsyncGuardClient(url, timeout_s=timeout_s, **connection) as guard:

        async def judge(numbered: tuple[int, RewardedConversation]) -> float:
            number, conversation = numbered
            try:
                classification = await flight.call(lambda: guard.send(_call(conversation)))
                return score(classification, controversial=controversial, refusal=refusal)
            except GuardError as error:
                if not is_row_error(error):
                    raise
                if bad is None:
                    raise type(error)(f"Conversation {number}: {error}") from None
                return bad

        await in_order(enumerate(conversations), judge, lambda _, value: rewards.append(value), in_flight)
    return rewards


def _call(conversation: Any) -> Call[Classification]:
    if isinstance(conversation, tuple) and len(conversation) == 2:
        prompt, response = conversation
        return calls.classify(prompt, response, None)
    if isinstance(conversation, str | Sequence):
        return calls.classify(None, None, conversation)
    raise InvalidRequest("A conversation is a pair of prompt and response, or a list of messages.")
