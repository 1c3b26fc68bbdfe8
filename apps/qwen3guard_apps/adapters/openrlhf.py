"""The reward for OpenRLHF: `--remote_rm_url .../qwen3guard_apps/adapters/openrlhf.py` takes `reward_func` from here.

The guard is at $GUARD_URL, or 127.0.0.1:8001. For other options write a file of your own:

    from qwen3guard_apps.adapters.openrlhf import openrlhf_reward
    reward_func = openrlhf_reward(url="guard:8001", refusal=0.0)

Needs a served Gen guard, and PyTorch, which OpenRLHF brings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import BoundedSemaphore
from typing import Any

import torch
from qwen3guard_client.transport.connection import DEFAULT_URL
from qwen3guard_contract.errors import InvalidRequest

from qwen3guard_apps.adapters.openrlhf_reader import prompt_turns, response_text
from qwen3guard_apps.annotation.flight import IN_FLIGHT
from qwen3guard_apps.client_options import url_of_environment
from qwen3guard_apps.reward import reward_in_thread

__all__ = ["openrlhf_reward", "reward_func"]


def openrlhf_reward(*, bad: float = 0.0, **options: Any) -> Callable[..., dict[str, Any]]:
    """A reward_func; `options` as of `reward_async`. `bad` is the reward of an answer that cannot be judged.

    A prompt is a plain text, or in the chat template of Qwen (ChatML). The function raises a GuardError, and
    InvalidRequest for a query that does not begin with its prompt and for a prompt in another template.
    """
    if bad is None:
        raise InvalidRequest('OpenRLHF takes no None for a reward: give `bad` a number, or "raise".')
    turn = BoundedSemaphore(IN_FLIGHT)  # it is called with one row at a time, from many threads

    def reward_func(
        queries: Sequence[str],
        prompts: Sequence[str],
        labels: Sequence[Any],  # noqa: ARG001 (OpenRLHF gives it)
        **_: Any,
    ) -> dict[str, Any]:
        """One reward for each query, which is a prompt with its response: `rewards`, float [queries], and `scores`,
        the same no lower than 0 and no higher than 1."""
        if len(queries) != len(prompts):
            raise InvalidRequest(f"There are {len(queries)} queries and {len(prompts)} prompts.")
        pairs = [
            (prompt_turns(prompt), response_text(number, query, prompt))
            for number, (query, prompt) in enumerate(zip(queries, prompts, strict=True))
        ]
        with turn:
            rewards = torch.tensor(reward_in_thread(pairs, bad=bad, **options), dtype=torch.float32)
        return {"rewards": rewards, "scores": rewards.clamp(0, 1), "extra_logs": {"qwen3guard": rewards}}

    return reward_func


reward_func = openrlhf_reward(url=url_of_environment() or DEFAULT_URL)
