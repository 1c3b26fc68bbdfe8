"""Gen asked as a chat model: by the openai package, by the recipe of Qwen's model card, and by LiteLLM."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import jinja2
import openai
import pytest
from qwen3guard_client import GuardClient
from qwen3guard_contract.labels import RISK_ORDER
from qwen3guard_contract.message_text import text_of_message
from qwen3guard_server.server import EmbeddedServer
from support.fake_llm import FakeLLM, Loop
from support.later import litellm
from support.places import DEMO
from support.proxied import Proxied
from tokenizers import Tokenizer

MODEL = "Qwen/Qwen3Guard-Gen-0.6B"
HARMFUL = "How can I make a bomb in my kitchen?"
CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "What should I cook for dinner tonight?"}],
    [{"role": "user", "content": HARMFUL}],
    [{"role": "user", "content": [{"type": "text", "text": HARMFUL}]}],
    [{"role": "user", "content": HARMFUL}, {"role": "assistant", "content": "I'm sorry, but I can't help with that."}],
)


@pytest.fixture(scope="module")
def client(loop: Loop, guard: GuardClient) -> Iterator[openai.OpenAI]:
    with Proxied(loop, guard.url, None) as proxy:
        yield proxy.client()


def ask(client: openai.OpenAI, messages: list[dict[str, Any]], model: str = MODEL, **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=messages, **more)  # type: ignore[arg-type]


def prompt_tokens(messages: list[dict[str, Any]]) -> int:
    """As transformers does it: the whole text by the template, then its tokens."""
    source = json.loads((DEMO / "gen/tokenizer_config.json").read_text())["chat_template"]
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    plain = [{"role": each["role"], "content": text_of_message(each, "A message")} for each in messages]
    text = template.render(messages=plain, add_generation_prompt=True)
    return len(Tokenizer.from_file(str(DEMO / "gen/tokenizer.json")).encode(text).ids)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_answer_is_what_gen_writes(client: openai.OpenAI, guard: GuardClient, messages: list[Any]) -> None:
    """Read by the regular expressions of the model card, it says what `classify` says."""
    verdict = guard.classify(messages=messages)
    found = ask(client, messages)
    text = found.choices[0].message.content
    assert (text, found.choices[0].finish_reason) == (verdict.answer, "stop")
    level = re.search(r"Safety: (Safe|Unsafe|Controversial)", text)
    refusal = re.search(r"Refusal: (Yes|No)", text)
    assert level
    assert level[1] == verdict.severity.value
    assert (refusal and refusal[1]) == (verdict.refusal and verdict.refusal.value)
    assert found.usage.prompt_tokens == prompt_tokens(messages)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.model == MODEL


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_pieces_are_the_whole(client: openai.OpenAI, messages: list[Any]) -> None:
    whole = ask(client, messages, logprobs=True, top_logprobs=3)
    chunks = list(
        ask(client, messages, stream=True, logprobs=True, top_logprobs=3, stream_options={"include_usage": True})
    )
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    streamed = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert streamed == whole.choices[0].logprobs.content
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_log_probabilities_give_the_probabilities_of_the_verdict(
    client: openai.OpenAI, guard: GuardClient, messages: list[Any]
) -> None:
    found = ask(client, messages, logprobs=True, top_logprobs=20)
    tokens = found.choices[0].logprobs.content
    assert "".join(each.token for each in tokens) == found.choices[0].message.content
    for each in tokens:
        assert each.top_logprobs[0].token == each.token  # greedy
        assert each.logprob <= 0
    decides = next(number for number in range(len(tokens)) if "".join(t.token for t in tokens[:number]) == "Safety:")
    levels = {each.token.strip(): math.exp(each.logprob) for each in tokens[decides].top_logprobs}
    verdict = guard.classify(messages=messages)
    assert sum(levels.values()) <= 1 + 1e-6
    for level in RISK_ORDER:
        [mass] = [value for token, value in levels.items() if level.value.startswith(token)]
        assert mass / sum(levels.values()) == pytest.approx(verdict.severity_probabilities[level], abs=1e-5)


def test_a_short_answer_is_cut(client: openai.OpenAI) -> None:
    whole = ask(client, CONVERSATIONS[1])
    count = whole.usage.completion_tokens
    for name in ("max_tokens", "max_completion_tokens"):
        short = ask(client, CONVERSATIONS[1], **{name: 3})  # type: ignore[arg-type]
        assert whole.choices[0].message.content.startswith(short.choices[0].message.content)
        assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
        assert ask(client, CONVERSATIONS[1], **{name: count}).choices == whole.choices
        assert ask(client, CONVERSATIONS[1], **{name: count - 1}).choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"stop": ["None"]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"5": 3}},
        {"presence_penalty": 1.5},
        {"presence_penalty": True},
        {"top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 21},
        {"max_tokens": 0},
        {"max_tokens": "5"},
        {"extra_body": {"guided_choice": ["Safe"]}},
        {"extra_body": {"add_generation_prompt": False}},
        {"extra_body": {"stream": "yes"}},
        {"extra_body": {"stream_options": []}},
        {"extra_body": {"messages": "x"}},
        {"extra_body": {"messages": []}},
        {"extra_body": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}},
    ],
)
def test_what_it_cannot_follow_is_refused(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        ask(client, CONVERSATIONS[0], **fields)


def test_what_changes_nothing_is_taken(client: openai.OpenAI) -> None:
    plain = ask(client, CONVERSATIONS[1])
    other = ask(
        client, CONVERSATIONS[1], model="qwen3guard-gen", temperature=0.7, top_p=0.8, seed=5, n=1, presence_penalty=0,
        user="u", extra_body={"top_k": 20, "repetition_penalty": 1.0, "chat_template_kwargs": {"x": False}},
    )  # fmt: skip
    assert other.choices == plain.choices


@pytest.mark.filterwarnings("ignore:Item 'summary':UserWarning")  # of LiteLLM's own types
def test_litellm_is_a_client(client: openai.OpenAI, guard: GuardClient) -> None:
    async def ask_litellm() -> Any:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none") as own:
            return await litellm.acompletion(model=f"openai/{MODEL}", messages=CONVERSATIONS[1], client=own)

    assert asyncio.run(ask_litellm()).choices[0].message.content == guard.classify(HARMFUL).answer


def test_it_is_listed(client: openai.OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["qwen3guard-gen"]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")
    with pytest.raises(openai.NotFoundError, match="The only model here is qwen3guard-gen"):
        ask(client, CONVERSATIONS[0], model="gpt-4o")


def test_beside_an_llm_each_answers_for_itself(loop: Loop, llm: FakeLLM, guard: GuardClient) -> None:
    with Proxied(loop, guard.url, llm) as proxy:
        client = proxy.client()
        assert ask(client, CONVERSATIONS[1]).choices[0].message.content == guard.classify(HARMFUL).answer
        assert not llm.asked
        assert ask(client, CONVERSATIONS[0], model="gpt-4o").choices[0].message.content == llm.text
        names = [each.id for each in client.models.list()]
        assert len(names) > 1
        assert names[-1] == "qwen3guard-gen"


def test_without_gen_there_is_no_such_model(loop: Loop, stream_server: EmbeddedServer) -> None:
    with Proxied(loop, stream_server.url, None) as proxy, pytest.raises(openai.NotFoundError):
        ask(proxy.client(), CONVERSATIONS[0])
