"""The adapters inside the real LiteLLM, LangChain and NeMo Guardrails, on the demo guard."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolCallChunk,
    ToolMessage,
)
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from qwen3guard_apps.adapters import langchain
from qwen3guard_apps.openai.api_error import ApiError
from qwen3guard_client import Flagged, GuardClient
from qwen3guard_contract import errors
from support.later import litellm, litellm_adapter, litellm_types
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
    monkeypatch.setattr("litellm.callbacks", [litellm_adapter.Qwen3Guardrail(url=guard.url, default_on=True)])
    assert complete(PROMPT, SAFE).choices[0].message.content == SAFE
    with pytest.raises(litellm.exceptions.GuardrailRaisedException, match="The prompt is") as prompt:
        complete(UNSAFE_PROMPT, SAFE)
    with pytest.raises(litellm.exceptions.GuardrailRaisedException, match="The response is") as response:
        complete(PROMPT, TURNS)
    assert prompt.value.blocked_content
    assert response.value.blocked_content
    nobody_there = litellm_adapter.Qwen3Guardrail(url=f"127.0.0.1:{free_port()}", default_on=True)
    monkeypatch.setattr("litellm.callbacks", [nobody_there])
    with pytest.raises(litellm.exceptions.GuardrailRaisedException, match="cannot judge") as nobody:
        complete(PROMPT, SAFE)
    assert not nobody.value.blocked_content


@pytest.mark.filterwarnings("ignore:Item:UserWarning")  # of LiteLLM's types
def test_litellm_streams_what_is_cleared(guard: GuardClient, offset: int) -> None:
    guardrail = litellm_adapter.Qwen3Guardrail(url=guard.url)

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
    assert flagged
    assert text
    assert TURNS[:offset].startswith(text)


@pytest.mark.filterwarnings("ignore:Item:UserWarning", "ignore:Pydantic:UserWarning")  # of LiteLLM's types
def test_litellm_streams_in_the_order_of_the_llm(guard: GuardClient, offset: int) -> None:
    """Reasoning, text, an empty delta and a call, of two choices: whole, as they came, or none from a flag on."""
    guardrail = litellm_adapter.Qwen3Guardrail(url=guard.url)
    flagged: list[bool] = []

    def streamed(reasoning: str, arguments: str) -> tuple[list[Any], list[Any]]:
        call = {"index": 0, "id": "1", "type": "function", "function": {"name": "cook", "arguments": arguments}}
        deltas: list[tuple[int, dict[str, Any]]] = [
            (0, {"role": "assistant", "content": ""}),
            (1, {"role": "assistant", "content": "Well, "}),
            *((0, {"reasoning_content": word + " "}) for word in reasoning.split()),
            (1, {"content": "cook some rice."}),
            (0, {"content": "Fine."}),
            (0, {"tool_calls": [call]}),
            (1, {}),
        ]
        chunks = [
            litellm_types.ModelResponseStream(choices=[{"index": index, "delta": delta}]) for index, delta in deltas
        ]

        async def written() -> AsyncIterator[Any]:
            for chunk in chunks:
                yield chunk

        async def come() -> list[Any]:
            came = []
            asked = {"messages": [{"role": "user", "content": PROMPT}], "n": 2}
            try:
                async for chunk in guardrail.async_post_call_streaming_iterator_hook(None, written(), asked):
                    came.append(chunk)
            except litellm.exceptions.GuardrailRaisedException as error:
                flagged.append(error.blocked_content)
            return came

        return chunks, asyncio.run(come())

    chunks, came = streamed(SAFE, json.dumps({"how": SAFE}))
    assert came == chunks
    for reasoning, arguments in ((TURNS, "{}"), (SAFE, TURNS)):
        chunks, came = streamed(reasoning, arguments)
        assert came == chunks[: len(came)]
        assert len(came) < len(chunks) - 1
        assert flagged.pop()
        shown = "".join(each.choices[0].delta.model_dump().get("reasoning_content") or "" for each in came)
        assert (SAFE if reasoning == SAFE else TURNS[:offset]).startswith(shown.strip())


@pytest.mark.filterwarnings("ignore:Item:UserWarning")  # of LiteLLM's types
def test_litellm_judges_each_call_by_its_type(guard: GuardClient) -> None:
    guardrail = litellm_adapter.Qwen3Guardrail(url=guard.url)

    def before(call_type: str, guardrail: Any = guardrail, **data: Any) -> bool:
        try:
            asyncio.run(guardrail.async_pre_call_hook(None, None, data, call_type))
        except litellm.exceptions.GuardrailRaisedException:
            return False
        return True

    assert before("atext_completion", prompt=[PROMPT])
    assert not before("atext_completion", prompt=[PROMPT, UNSAFE_PROMPT])
    assert before("aresponses", input=PROMPT)
    assert not before("aresponses", input=UNSAFE_PROMPT)
    assert before("aembedding", input=UNSAFE_PROMPT)
    assert not before("aimage_generation", prompt=PROMPT)
    lets = litellm_adapter.Qwen3Guardrail(url=guard.url, let_through=["aimage_generation"])
    assert before("aimage_generation", lets, prompt=UNSAFE_PROMPT)
    embedded = litellm.EmbeddingResponse()
    assert asyncio.run(guardrail.async_post_call_success_hook({"input": "a"}, None, embedded)) is embedded
    with pytest.raises(litellm.exceptions.GuardrailRaisedException, match="ImageResponse"):
        asyncio.run(guardrail.async_post_call_success_hook({"prompt": PROMPT}, None, litellm.ImageResponse()))


class Chunks(GenericFakeChatModel):
    """Writes the chunks that it is given."""

    chunks: list[AIMessageChunk]

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in self.chunks:
            yield ChatGenerationChunk(message=chunk)


def writes(*chunks: AIMessageChunk) -> Chunks:
    return Chunks(messages=iter([]), chunks=list(chunks))


def reasoned(text: str) -> AIMessageChunk:
    return AIMessageChunk(content="", additional_kwargs={"reasoning_content": text})


def calling(text: str) -> list[AIMessageChunk]:
    """A tool call in two pieces."""
    arguments = json.dumps({"how": text})
    pieces = [("cook", "1", arguments[:9]), (None, None, arguments[9:])]
    calls = [ToolCallChunk(name=name, args=args, id=id_, index=0, type="tool_call_chunk") for name, id_, args in pieces]
    return [AIMessageChunk(content="", tool_call_chunks=[each]) for each in calls]


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
    with GuardClient(f"127.0.0.1:{free_port()}") as nobody, pytest.raises(errors.Unreachable):
        langchain.guarded(model(SAFE), nobody).invoke(PROMPT)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(ApiError, match="image_url"):
        langchain.guarded(model(SAFE), guard).invoke([HumanMessage(content=[{"type": "text", "text": PROMPT}, image])])
    with pytest.raises(errors.InvalidMessages, match="image_url"):
        langchain.guarded(writes(AIMessageChunk(content=[image])), guard).invoke(PROMPT)
    text = {"type": "text", "text": SAFE, "documents": TURNS}
    with pytest.raises(errors.InvalidMessages, match="documents"):
        langchain.guarded(writes(AIMessageChunk(content=[text])), guard).invoke(PROMPT)


def test_langchain_judges_reasoning_and_tool_calls(guard: GuardClient) -> None:
    text = AIMessageChunk(content="Fine.", response_metadata={"finish_reason": "tool_calls", "note": TURNS})
    safe = langchain.guarded(writes(reasoned("Well. "), reasoned(SAFE), text, *calling(SAFE)), guard).invoke(PROMPT)
    assert (safe.content, safe.additional_kwargs) == ("Fine.", {"reasoning_content": "Well. " + SAFE})
    assert [call["args"] for call in safe.tool_calls] == [{"how": SAFE}]
    assert safe.response_metadata == {"finish_reason": "tool_calls", "guard": None}
    for chunks in (
        [reasoned(TURNS)],
        calling(TURNS),
        [AIMessageChunk(content=[{"type": "thinking", "thinking": TURNS}])],
    ):
        stopped = langchain.guarded(writes(*chunks, AIMessageChunk(content="Fine.")), guard).invoke(PROMPT)
        assert stopped.response_metadata["finish_reason"] == "content_filter"
        assert "bomb" not in stopped.model_dump_json()
        assert not stopped.tool_calls
    parts: list[Any] = [{"type": "reasoning", "reasoning": SAFE}, {"type": "text", "text": "Fine."}]
    assert langchain.guarded(writes(AIMessageChunk(content=parts)), guard).invoke(PROMPT).text == "Fine."


def test_langchain_reads_the_messages_of_a_conversation(guard: GuardClient) -> None:
    call = {"name": "look", "args": {"for": "dinner"}, "id": "1", "type": "tool_call"}
    thought: list[Any] = [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "text", "text": "I look."},
    ]
    turns = [
        SystemMessage("Be brief."),
        HumanMessage(PROMPT),
        AIMessage(thought, tool_calls=[call]),
        ToolMessage("Rice.", tool_call_id="1"),
    ]
    assert langchain.guarded(model(SAFE), guard).invoke(turns).content == SAFE
    harmful = [*turns[:-1], ToolMessage(UNSAFE_PROMPT, tool_call_id="1")]
    assert langchain.guarded(model(SAFE), guard).invoke(harmful).content == ""
    begun = [HumanMessage(PROMPT), AIMessage(TURNS[:100])]
    assert "bomb" in TURNS[:100]
    assert langchain.guarded(model(TURNS[100:]), guard).invoke(begun).response_metadata["guard"]
    assert [each.content for each in langchain.guarded(model(SAFE), guard).batch([PROMPT, UNSAFE_PROMPT])] == [SAFE, ""]


RAILS = """
import asyncio, json, sys
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from nemoguardrails import LLMRails, RailsConfig
from qwen3guard_apps.adapters import nemo

flows = {name: {"flows": ["qwen3guard check " + name.replace("_", " ")]} for name in nemo_rails}
streamed = {"enabled": True, "chunk_size": 60, "context_size": 20, "stream_first": False}

def rails(url, said, passthrough, stream):
    output = flows.get("output", {"flows": []}) | ({"streaming": streamed} if stream else {})
    yaml = json.dumps({"models": [], "passthrough": passthrough, "rails": flows | {"output": output}})
    config = RailsConfig.from_content(colang_content=nemo.FLOWS, yaml_content=yaml)
    made = LLMRails(config, llm=GenericFakeChatModel(messages=iter([AIMessage(**said)])))
    nemo.register(made, url)
    return made

async def answer(url, messages, said, passthrough=False, stream=False):
    made = rails(url, said, passthrough, stream)
    if not stream:
        return await made.generate_async(messages=messages)
    return {"content": "".join([piece async for piece in made.stream_async(messages=messages)])}

print(json.dumps([asyncio.run(answer(**case)) for case in json.loads(sys.argv[1])]))
"""
REFUSAL = "I cannot answer that."


def railed(cases: list[dict[str, Any]], rails: Sequence[str] = ("input", "output", "tool_output")) -> list[Any]:
    """What NeMo answers, in a process of its own: importing it changes asyncio for all of it."""
    script = f"nemo_rails = {list(rails)!r}" + RAILS
    command = [sys.executable, "-c", script, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_nemo_rails_pass_and_refuse(guard: GuardClient) -> None:
    user = {"role": "user", "content": PROMPT}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    call = {"name": "cook", "id": "1", "type": "tool_call"}
    before = [user, {"role": "assistant", "content": SAFE}, {"role": "user", "content": "And then?"}]

    def case(messages: list[Any], content: str = SAFE, url: str = guard.url, **more: Any) -> dict[str, Any]:
        said = {"content": content} | {key: more.pop(key) for key in ("additional_kwargs", "tool_calls") if key in more}
        return {"url": url, "messages": messages, "said": said, **more}

    assert guard.classify(PROMPT, TURNS).strict
    passing = [
        case([user]),
        case(before),
        case([{"role": "user", "content": ""}]),
        case([user], stream=True),
        case([user], "Fine.", additional_kwargs={"reasoning_content": SAFE}),
        case([user], "", tool_calls=[call | {"args": {"how": SAFE}}], passthrough=True),
    ]
    refused = [
        case([{"role": "user", "content": UNSAFE_PROMPT}]),
        case([user], TURNS),
        case([user], url=f"127.0.0.1:{free_port()}"),
        case([{"role": "user", "content": [{"type": "text", "text": PROMPT}, image]}]),
        case([user], "Fine.", additional_kwargs={"reasoning_content": TURNS}),
        case([user], "", tool_calls=[call | {"args": {"how": TURNS}}], passthrough=True),
    ]
    *answers, cut = railed([*passing, *refused, case([user], TURNS, stream=True)])
    passed, stopped = answers[: len(passing)], answers[len(passing) :]
    assert [each["content"] for each in passed[:4]] == [SAFE] * 4
    assert passed[4]["content"] == f"<think>{SAFE}</think>\nFine."
    assert passed[5]["tool_calls"][0]["function"]["arguments"] == {"how": SAFE}
    assert stopped == [{"role": "assistant", "content": REFUSAL}] * len(refused)
    assert "content_blocked" in cut["content"]
    assert "explosives" not in cut["content"]


def test_nemo_judges_the_results_of_tools(guard: GuardClient) -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    asked = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "", "tool_calls": calls}]
    harmful = {"role": "tool", "tool_call_id": "1", "name": "look", "content": UNSAFE_PROMPT}
    case = {"url": guard.url, "messages": [*asked, harmful], "said": {"content": SAFE}, "passthrough": True}
    assert [each["content"] for each in railed([case], ("tool_input",))] == [REFUSAL]
    # The config has no rail for tool calls, which the output's would not see.
    with pytest.raises(AssertionError, match="InvalidRequest"):
        railed([case], ("output",))


@pytest.mark.parametrize("name", ["litellm", "langchain", "nemo"])
def test_an_adapter_is_small(name: str) -> None:
    text = (ROOT / "apps" / "qwen3guard_apps" / "adapters" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
