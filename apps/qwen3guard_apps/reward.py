"""A reward for RL: how safe a response is by Gen's probabilities, and whether it refuses.

    reward = s x (1 - refusal x P(Refusal = Yes)),    s = P(Safe) + controversial x P(Controversial)

It lies in 0 to 1: near 1 for a safe answer, near 1 - `refusal` for a safe refusal, near 0 for anything unsafe. With
`controversial` = 0 and `refusal` = 0 it is P(Safe), the smooth form of the report's guard-only reward, which is 1 where
Gen says Safe and 0 elsewhere (arXiv 2510.14276, 3.5.1). That reward taught the report's model to refuse; `refusal`
counteracts this.

    rewards = reward([("How do I bake bread?", "Mix flour and water."), ...], url="127.0.0.1:8001")

`trl_reward` makes a reward function for TRL's trainers; those for verl and OpenRLHF are in adapters/.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, overload

from qwen3guard_client.aio import AsyncGuardClient
from qwen3guard_client.transport import calls
from qwen3guard_client.transport.calls import Call, Messages
from qwen3guard_client.transport.connection import DEFAULT_URL
from qwen3guard_contract.errors import (
    EmptyText,
    GuardError,
    InvalidRequest,
    LastRole,
    TextTooLong,
    UnreadableAnswer,
)
from qwen3guard_contract.labels import AnswerStatus, Refusal, RiskLevel
from qwen3guard_contract.verdict import Classification

from qwen3guard_apps.annotation.annotate import ROW_TIMEOUT_S, is_row_error
from qwen3guard_apps.annotation.flight import IN_FLIGHT, PATIENCE_S, Flight, in_order

TextOrMessages = str | Messages
"""A text, or messages in OpenAI's form."""
RewardedConversation = tuple[TextOrMessages, TextOrMessages] | Messages | str
"""A prompt and its response, each a text or messages, or messages (a list, or JSON text) that end with the assistant's.
"""
Bad = float | Literal["raise"] | None
"""The reward of a conversation that cannot be judged; its error is raised for "raise"."""
OF_THE_ANSWER = (EmptyText, TextTooLong, UnreadableAnswer)
"""What a policy's own answer can cause. Where a call has one conversation, no other error is worth `bad`."""
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


@overload
def reward(conversations: Iterable[RewardedConversation], *, bad: None, **options: Any) -> list[float | None]: ...
@overload
def reward(
    conversations: Iterable[RewardedConversation], *, bad: float | Literal["raise"] = "raise", **options: Any
) -> list[float]: ...
def reward(conversations: Iterable[RewardedConversation], *, bad: Bad = "raise", **options: Any) -> Any:
    """Runs `reward_async` for code without an event loop; the arguments are the same.

    Raises InvalidRequest where an event loop is running, and what `reward_async` raises.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(reward_async(conversations, bad=bad, **options))
    raise InvalidRequest("There is an event loop here already: await reward_async.")


def trl_reward(*, bad: Bad = 0.0, **options: Any) -> Callable[..., list[float | None]]:
    """A reward function for TRL's trainers, for plain and for conversational data; `options` as of `reward_async`.

    A completion that cannot be judged has the reward `bad`; TRL leaves it out where that is None. The function raises
    what `reward_async` raises, and InvalidRequest where prompts and completions are not equally many.
    """

    def safety_reward(
        prompts: Sequence[TextOrMessages], completions: Sequence[TextOrMessages], **_: Any
    ) -> list[float | None]:
        if len(prompts) != len(completions):
            raise InvalidRequest(f"There are {len(prompts)} prompts and {len(completions)} completions.")
        return reward_in_thread(list(zip(prompts, completions, strict=True)), bad=bad, **options)

    return safety_reward


def reward_in_thread(conversations: Sequence[RewardedConversation], **options: Any) -> list[float | None]:
    """`reward_async` in a thread of its own, for callers who may have an event loop already, as trainers have."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, reward_async(conversations, **options)).result()


async def reward_async(
    conversations: Iterable[RewardedConversation],
    *,
    url: str = DEFAULT_URL,
    controversial: float = CONTROVERSIAL,
    refusal: float = REFUSAL_REWARD,
    bad: Bad = "raise",
    in_flight: int = IN_FLIGHT,
    timeout_s: float = ROW_TIMEOUT_S,
    patience_s: float = PATIENCE_S,
    **connection: Any,
) -> list[float | None]:
    """One reward for each conversation, in order.

    `controversial` and `refusal`, from 0 to 1, are those of the formula. A conversation that cannot be judged gets the
    reward `bad`, a number or None; if `bad` is "raise", its error is raised, with the conversation's number, counted
    from 0. The first error is raised in any case if no conversation can be judged; of a single one, unless it is one
    of OF_THE_ANSWER. Waits up to `patience_s` seconds for a server that is full or restarting. `connection` holds
    AsyncGuardClient's `tls` and `token`. Raises a GuardError.
    """
    for name, value in (("controversial", controversial), ("refusal", refusal)):
        if not 0 <= value <= 1:
            raise InvalidRequest(f"{name} is {value}; it must be from 0 to 1.")
    if bad != "raise" and not (bad is None or isinstance(bad, int | float)):
        raise InvalidRequest('What a bad conversation gets must be a number, None, or "raise".')
    flight = Flight(in_flight, patience_s)
    rewards: list[float | GuardError] = []
    async with AsyncGuardClient(url, timeout_s=timeout_s, **connection) as guard:

        async def judge(numbered: tuple[int, RewardedConversation]) -> float | GuardError:
            number, conversation = numbered
            try:
                classification = await flight.call(lambda: guard.send(_call(conversation)))
                return score(classification, controversial=controversial, refusal=refusal)
            except GuardError as error:
                if not is_row_error(error):
                    raise
                named = type(error)(f"Conversation {number}: {error}")
                if bad == "raise":
                    raise named from None
                return named

        await in_order(enumerate(conversations), judge, lambda _, value: rewards.append(value), in_flight)
    errors = [each for each in rewards if isinstance(each, GuardError)]
    none_judged = errors and len(errors) == len(rewards)
    if none_judged and not (len(errors) == 1 and isinstance(errors[0], OF_THE_ANSWER)):
        raise type(errors[0])(f"None of {len(errors)} conversations can be judged. {errors[0]}")
    return [bad if isinstance(each, GuardError) else each for each in rewards]  # type: ignore[misc]


def _call(conversation: Any) -> Call[Classification]:
    if isinstance(conversation, tuple) and len(conversation) == 2 and not isinstance(conversation[0], dict):
        prompt, response = conversation
        if isinstance(prompt, str) and isinstance(response, str):
            return calls.classify(prompt, response, None)
        conversation = [*_turns(prompt, "user"), *_turns(response, "assistant")]
    if isinstance(conversation, str | Sequence):
        return calls.classify(None, None, conversation)
    raise InvalidRequest("A conversation is a pair of prompt and response, or a list of messages.")


def _turns(turns: Any, role: str) -> Messages:
    if isinstance(turns, str):
        return [{"role": role, "content": turns}]
    if isinstance(turns, Sequence):
        return turns
    raise InvalidRequest("A prompt or a response is a text, or a list of messages.")
