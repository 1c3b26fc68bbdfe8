"""The reward for verl: `compute_score` for reward managers that ask row by row, `compute_score_batched` for `batch`.

    custom_reward_function.path=.../qwen3guard_apps/adapters/verl.py
    custom_reward_function.name=compute_score_batched
    +custom_reward_function.reward_kwargs.url=127.0.0.1:8001

verl gives a reward function the response and not the prompt: the prompt is read from the row's `extra_info`, where the
field `prompt_key` must hold a text or messages. Needs a served Gen guard, and nothing of verl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import BoundedSemaphore
from typing import Any

from qwen3guard_contract.errors import InvalidRequest

from qwen3guard_apps.annotation.flight import IN_FLIGHT
from qwen3guard_apps.reward import reward_in_thread

__all__ = ["compute_score", "compute_score_batched"]
PROMPT_KEY = "question"
"""Where verl's own preparation of GSM8K leaves the prompt."""
_TURN = BoundedSemaphore(IN_FLIGHT)
"""verl calls compute_score from many threads: so many of them ask the server at once."""


def compute_score(
    data_source: str,  # noqa: ARG001 (verl gives it)
    solution_str: str,
    ground_truth: Any,  # noqa: ARG001 (verl gives it)
    extra_info: Mapping[str, Any] | None = None,
    *,
    prompt_key: str = PROMPT_KEY,
    bad: float = 0.0,
    **options: Any,
) -> float:
    """The reward of one response; `options` as of `reward_async`. Raises a GuardError.

    `bad` is the reward of an answer that cannot be judged; an extra_info without a prompt is an error.
    """
    pairs = [(_prompt(0, extra_info, prompt_key), solution_str)]
    with _TURN:
        return reward_in_thread(pairs, bad=_number(bad), **options)[0]  # type: ignore[return-value]


def compute_score_batched(
    data_sources: Sequence[str],  # noqa: ARG001 (verl gives it)
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],  # noqa: ARG001 (verl gives it)
    extra_infos: Sequence[Mapping[str, Any] | None],
    *,
    prompt_key: str = PROMPT_KEY,
    bad: float = 0.0,
    **options: Any,
) -> list[float]:
    """One reward for each response, in order, many asked at once; otherwise as `compute_score`."""
    if len(solution_strs) != len(extra_infos):
        raise InvalidRequest(f"There are {len(solution_strs)} solutions and {len(extra_infos)} extra_infos.")
    prompts = [_prompt(number, info, prompt_key) for number, info in enumerate(extra_infos)]
    return reward_in_thread(list(zip(prompts, solution_strs, strict=True)), bad=_number(bad), **options)  # type: ignore[return-value]


def _prompt(number: int, extra_info: Mapping[str, Any] | None, key: str) -> Any:
    prompt = (extra_info or {}).get(key)
    if prompt is None:
        raise InvalidRequest(f"The extra_info of row {number} has no prompt {key!r}: name its field by prompt_key.")
    return prompt if isinstance(prompt, str) else list(prompt)  # Parquet gives an array of messages


def _number(bad: Any) -> Any:
    if bad is None:
        raise InvalidRequest('verl takes no None for a reward: give `bad` a number, or "raise".')
    return bad
