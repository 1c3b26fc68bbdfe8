"""The rewards for verl and OpenRLHF, called as these call them: by the names of their parameters, from files loaded by
path, a row at a time in many threads, and in batches."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qwen3guard_apps.adapters import openrlhf, verl
from qwen3guard_apps.reward import reward
from qwen3guard_contract import errors
from qwen3guard_server.server import EmbeddedServer
from support.later import torch

PROMPT = "How do I bake bread?"
ANSWERS = ["Mix flour and water.", "I cannot help with that."]
TEMPLATED = f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"


def loaded(module: Any) -> Any:
    """The module as both trainers load it: from its file, under a name of their own."""
    spec = importlib.util.spec_from_file_location("reward_func", Path(module.__file__))
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def wanted(url: str, *answers: str, system: bool = False) -> list[float]:
    turns: list[Any] = [{"role": "system", "content": "Be brief."}] if system else []
    turns.append({"role": "user", "content": PROMPT})
    return reward([(turns, each) for each in answers], url=url)


def names(function: Any) -> list[str]:
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [name for name, each in inspect.signature(function).parameters.items() if each.kind in kinds]


def test_the_parameters_are_those_that_are_published() -> None:
    assert names(verl.compute_score) == ["data_source", "solution_str", "ground_truth", "extra_info"]
    assert names(verl.compute_score_batched) == ["data_sources", "solution_strs", "ground_truths", "extra_infos"]
    assert names(openrlhf.reward_func) == ["queries", "prompts", "labels"]


def test_verl_gets_the_rewards_row_by_row_and_in_batches(server: EmbeddedServer) -> None:
    module = loaded(verl)
    expected = wanted(server.url, *ANSWERS)
    infos: Any = np.array([{"question": PROMPT, "split": "train"}, {"question": PROMPT}], object)
    batch = {
        "data_sources": np.array(["bread"] * 2, object), "solution_strs": ANSWERS, "ground_truths": [None, ""],
        "extra_infos": infos,
    }  # fmt: skip
    found = module.compute_score_batched(**batch, url=server.url)
    assert found == pytest.approx(expected, abs=1e-5)
    assert all(type(each) is float for each in found)
    messages = {"messages": np.array([{"role": "user", "content": PROMPT}], object)}  # as from Parquet
    for info, key in ((infos[0], "question"), (messages, "messages")):
        one = {"data_source": "bread", "solution_str": ANSWERS[0], "ground_truth": None, "extra_info": info}
        assert module.compute_score(**one, url=server.url, prompt_key=key) == pytest.approx(expected[0], abs=1e-5)


def test_verls_rows_that_cannot_be_judged(server: EmbeddedServer) -> None:
    """An answer that is empty is worth `bad`, alone or among others; a prompt that is missing is never a reward."""
    info = {"question": PROMPT}
    assert verl.compute_score("", " ", None, info, url=server.url) == 0.0
    assert verl.compute_score("", " ", None, info, url=server.url, bad=-1.0) == -1.0
    found = verl.compute_score_batched([""] * 2, [" ", ANSWERS[0]], [None] * 2, [info, info], url=server.url, bad=-1.0)
    assert found[0] == -1.0
    assert found[1] > 0
    for extra in (None, {}, {"prompt": PROMPT}, {"question": None}):
        with pytest.raises(errors.InvalidRequest, match="row 0 has no prompt 'question'"):
            verl.compute_score("", ANSWERS[0], None, extra, url=server.url)
    with pytest.raises(errors.InvalidMessages):
        verl.compute_score("", ANSWERS[0], None, {"question": [5]}, url=server.url)
    with pytest.raises(errors.InvalidRequest, match="no None"):
        verl.compute_score("", ANSWERS[0], None, info, url=server.url, bad=None)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidRequest, match="2 solutions and 1 extra_infos"):
        verl.compute_score_batched([""] * 2, ANSWERS, [None] * 2, [info], url=server.url)
    with pytest.raises(errors.Unreachable):
        verl.compute_score("", ANSWERS[0], None, info, url="127.0.0.1:9")


@pytest.mark.parametrize("prompt", [PROMPT, TEMPLATED, TEMPLATED + "<think>\n\n</think>\n\n"])
@pytest.mark.parametrize("end", ["", "<|im_end|>", "<|im_end|>\n<|endoftext|>", "</s>"])
def test_openrlhf_gets_the_rewards_of_its_queries(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, prompt: str, end: str
) -> None:
    monkeypatch.setenv("GUARD_URL", server.url)
    function = loaded(openrlhf).reward_func
    found = function([prompt + each + end for each in ANSWERS], [prompt] * 2, ["label", None])
    expected = wanted(server.url, *ANSWERS, system=prompt != PROMPT)
    assert found["rewards"].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(found["scores"], found["rewards"])
    assert found["rewards"].dtype == torch.float32
    assert found["extra_logs"].keys() == {"qwen3guard"}


def test_openrlhf_asks_a_row_at_a_time_from_many_threads(server: EmbeddedServer) -> None:
    """As its SingleTurnAgentExecutor does; an empty answer among them is worth `bad`."""
    function = openrlhf.openrlhf_reward(url=server.url, bad=-1.0)
    answers = [ANSWERS[number % 2] for number in range(20)] + ["<|im_end|>"]

    async def all_of_them() -> list[Any]:
        calls = (asyncio.to_thread(function, [TEMPLATED + each], [TEMPLATED], [None]) for each in answers)
        return await asyncio.gather(*calls)

    *found, empty = asyncio.run(all_of_them())
    expected = wanted(server.url, *answers[:-1], system=True)
    assert [each["rewards"].item() for each in found] == pytest.approx(expected, abs=1e-4)
    assert (empty["rewards"].item(), empty["scores"].item()) == (-1.0, 0.0)


def test_openrlhfs_prompts_that_cannot_be_read_are_refused() -> None:
    function = openrlhf.openrlhf_reward(url="127.0.0.1:9")
    with pytest.raises(errors.InvalidRequest, match="Query 1 does not begin with its prompt"):
        function([PROMPT + "Yes.", "Yes."], [PROMPT] * 2, [None] * 2)
    for other in (
        "<|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>", "[INST] Hi. [/INST]",
        "<start_of_turn>user\nHi.<end_of_turn>", "<|im_start|>user\nHi.<|eot_id|><|im_end|>\n",
    ):  # fmt: skip
        with pytest.raises(errors.InvalidRequest, match="other than ChatML"):
            function([other + "Yes."], [other], [None])
    with pytest.raises(errors.InvalidRequest, match="outside the turns"):
        function([f"Hi. {TEMPLATED}Yes."], [f"Hi. {TEMPLATED}"], [None])
    with pytest.raises(errors.InvalidRequest, match="1 queries and 2 prompts"):
        function(["Hi."], ["Hi."] * 2, [None])
    with pytest.raises(errors.InvalidRequest, match="no None"):
        openrlhf.openrlhf_reward(bad=None)  # type: ignore[arg-type]
