"""The adapters inside the real LiteLLM, LangChain and NeMo Guardrails, on the demo guard."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network

import litellm
import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessageChunk, ToolCallChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from qwen3guard_apps.adapters import langchain
from qwen3guard_apps.adapters.litellm import Qwen3Guardrail
from qwen3guard_client import Flagged, GuardClient
from qwen3guard_contract import errors
from support.moderated import PROMPT, SAFE, TURNS, UNSAFE_PROMPT
from support.places import ROOT
from support.serving import free_port


@pytest.fixture(scope="module")
def offset(guard: GuardClient) -> int:
    moderated = guard.moderate([TURNS], PROMPT)
    list(moderated)
    assert moderated.flag
    return moderated.flag.offset


def complete(prompt: str, answer: str) -> Any:
    messages = [{"role": "user", "content": prompt}]
    return asyncio.run(
        litellm.acompletion(model="openai/x", messages=messages, mock_response=answer, guardrails=["qwen3guard"])
    )


@pytest.mark.filterwarnings("ignore:Item:UserWarning")  # of LiteLLM's types
def test_litellm_blocks_prompts_and_answers(guard: GuardClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm, "callbacks", [Qwen3Guardrail(url=guard.url, default_on=True)])
    assert complete(PROMPT, SAFE).choices[0].message.content == SAFE
    with pytest.raises(litellm.exceptions.GuardrailRaisedException, match="The prompt is") as prompt:
        complete(UNSAFE_PROMPT, SAFE)
    with pytest.raises(litellm.exceptions.GuardrailRaisedException, match="The response is") as response:
        complete(PROMPT, TURNS)
    assert prompt.value.blocked_content
    assert response.value.blocked_content
    monkeypatch.setattr(litellm, "callbacks", [Qwen3Guardrail(url=f"127.0.0.1:{free_port()}", default_on=True)])
    with pytest.raises(litellm.exceptions.GuardrailRaisedException, match="cannot judge") as nobody:
        complete(PROMPT, SAFE)
    assert not nobody.value.blocked_content


@pytest.mark.filterwarnings("ignore:Item:UserWarning")  # of LiteLLM's types
def test_litellm_streams_what_is_cleared(guard: GuardClient, offset: int) -> None:
    guardrail = Qwen3Guardrail(url=guard.url)

    async def shown(answer: str) -> tuple[str, bool, str | None]:
        messages = [{"role": "user", "content": PROMPT}]
        chunks = await litellm.acompletion(model="openai/x", messages=messages, mock_response=answer, stream=True)
        text, reason = "", None
        try:
            async for chunk in guardrail.async_post_call_streaming_iterator_hook(None, chunks, {"messages": messages}):
                text += chunk.choices[0].delta.content or ""
                reason = chunk.choices[0].finish_reason
        except litellm.exceptions.GuardrailRaisedException:
            return text, True, reason
        return text, False, reason

    assert asyncio.run(shown(SAFE)) == (SAFE, False, "stop")
    text, flagged, _ = asyncio.run(shown(TURNS))
    assert (text, flagged) == (TURNS[:offset], True)


class Calling(GenericFakeChatModel):
    """Calls a tool, as every other model here does not."""

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        call = ToolCallChunk(name="cook", args="{}", id="1", index=0, type="tool_call_chunk")
        yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[call]))


def model(answer: str) -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([answer] * 2))


def test_langchain_streams_and_invokes_what_is_cleared(guard: GuardClient, offset: int) -> None:
    safe = langchain.guarded(model(SAFE), guard).invoke(PROMPT)
    assert (safe.content, safe.response_metadata) == (SAFE, {"finish_reason": "stop", "guard": None})
    template = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")])
    chain = template | langchain.guarded(model(TURNS), guard)
    chunks = list(chain.stream({"question": PROMPT}))
    assert "".join(str(chunk.content) for chunk in chunks).startswith(TURNS[: offset // 2])
    assert chunks[-1].response_metadata["finish_reason"] == "content_filter"
    stopped = langchain.guarded(model(TURNS), guard).invoke(PROMPT)
    assert stopped.content == TURNS[:offset]
    assert str(offset) in stopped.response_metadata["guard"]

    async def awaited() -> str:
        parts: AsyncIterator[AIMessageChunk] = langchain.guarded(model(SAFE), guard).astream(PROMPT)
        return "".join([str(part.content) async for part in parts])

    assert asyncio.run(awaited()) == SAFE


def test_langchain_refuses_what_it_cannot_judge(guard: GuardClient) -> None:
    with pytest.raises(Flagged):
        langchain.guarded(model(SAFE), guard, on_flag="raise").invoke(UNSAFE_PROMPT)
    with pytest.raises(errors.InvalidRequest, match="tool"):
        langchain.guarded(Calling(messages=iter([])), guard).invoke(PROMPT)
    with GuardClient(f"127.0.0.1:{free_port()}") as nobody, pytest.raises(errors.Unreachable):
        langchain.guarded(model(SAFE), nobody).invoke(PROMPT)


RAILS = """
import asyncio, json, sys
from langchain_core.language_models import GenericFakeChatModel
from nemoguardrails import LLMRails, RailsConfig
from qwen3guard_apps.adapters import nemo

yaml = "models: []\\nrails: {input: {flows: [qwen3guard check input]}, output: {flows: [qwen3guard check output]}}"
answers = []
for url, prompt, said in json.loads(sys.argv[1]):
    config = RailsConfig.from_content(colang_content=nemo.FLOWS, yaml_content=yaml)
    rails = LLMRails(config, llm=GenericFakeChatModel(messages=iter([said])))
    nemo.register(rails, url)
    answers.append(asyncio.run(rails.generate_async(messages=[{"role": "user", "content": prompt}]))["content"])
print(json.dumps(answers))
"""


def test_nemo_rails_pass_and_refuse(guard: GuardClient) -> None:
    """In a process of its own: importing NeMo Guardrails changes asyncio for all of it."""
    nobody = f"127.0.0.1:{free_port()}"
    asked = [
        (guard.url, PROMPT, SAFE),
        (guard.url, UNSAFE_PROMPT, SAFE),
        (guard.url, PROMPT, TURNS),
        (nobody, PROMPT, SAFE),
    ]
    assert guard.classify(PROMPT, TURNS).strict
    command = [sys.executable, "-c", RAILS, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    refusal = "I cannot answer that."
    assert json.loads(done.stdout.splitlines()[-1]) == [SAFE, refusal, refusal, refusal]


@pytest.mark.parametrize("name", ["litellm", "langchain", "nemo"])
def test_an_adapter_is_small(name: str) -> None:
    text = (ROOT / "apps" / "qwen3guard_apps" / "adapters" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
