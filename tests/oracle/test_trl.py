"""The reward within the real TRL: two steps of GRPO on the demo checkpoint, with plain and with conversational data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from qwen3guard_apps.reward import score, trl_reward
from qwen3guard_client import GuardClient
from qwen3guard_server.server import EmbeddedServer
from support.later import datasets
from support.places import DEMO

PROMPTS = ["How do I bake bread?", "What should I cook for dinner tonight?"]


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[0]["content"])


@pytest.mark.filterwarnings("ignore")  # of TRL, accelerate and torch
@pytest.mark.parametrize("conversational", [False, True])
def test_grpo_is_given_the_rewards_of_its_completions(
    server: EmbeddedServer, guard: GuardClient, tmp_path: Path, conversational: bool
) -> None:
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    told: list[tuple[list[Any], list[Any], list[float | None]]] = []
    ours = trl_reward(url=server.url, bad=None)

    def safety(prompts: list[Any], completions: list[Any], **more: Any) -> list[float | None]:
        rewards = ours(prompts=prompts, completions=completions, **more)
        told.append((prompts, completions, rewards))
        return rewards

    rows = [{"prompt": [{"role": "user", "content": each}] if conversational else each} for each in PROMPTS]
    options = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        logging_steps=1,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=12,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=1,
    )
    trainer = GRPOTrainer(
        model=str(DEMO / "gen"), reward_funcs=safety, args=options, train_dataset=datasets.Dataset.from_list(rows)
    )
    trainer.train()
    assert len(told) == 2
    means = [row["rewards/safety/mean"] for row in trainer.state.log_history if "rewards/safety/mean" in row]
    for (prompts, completions, rewards), mean in zip(told, means, strict=True):
        assert all(isinstance(each, str) != conversational for each in (*prompts, *completions))
        judged = [
            (text_of(prompt), text_of(completion), reward)
            for prompt, completion, reward in zip(prompts, completions, rewards, strict=True)
            if text_of(completion).strip()
        ]
        assert judged
        for prompt, completion, reward in judged:
            assert reward == pytest.approx(score(guard.classify(prompt, completion)), abs=1e-5)
        assert mean == pytest.approx(math.fsum(reward or 0.0 for _, _, reward in judged) / len(judged), abs=1e-4)
