"""Tokens and rendered conversations are transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qwen3guard_contract.messages import Message
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_runtime.text.tokenizer import GuardTokenizer
from support.all_texts import all_texts
from support.later import transformers
from support.places import DEMO
from support.templates import with_template
from support.texts import TEXTS

LIMIT = 32768


@pytest.fixture(scope="module", params=["qwen", "demo"])
def folder(request: pytest.FixtureRequest, qwen_folder: Path) -> Path:
    return qwen_folder if request.param == "qwen" else DEMO / "gen"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> GuardTokenizer:
    return GuardTokenizer.load(folder)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def test_plain_text_equals_the_oracles_tokens(tokenizer: GuardTokenizer, oracle: Any) -> None:
    for text in all_texts():
        if not any(name in text for name in tokenizer.special):
            assert tokenizer.encode(text) == oracle(text, add_special_tokens=False)["input_ids"]


CONVERSATIONS = [
    [("user", "How do I bake bread?")],
    [("user", "Stop!!")],
    [("system", "You are kind."), ("user", "Hi."), ("assistant", "Hello."), ("user", "And now?\n")],
    *([("user", text)] for text in TEXTS if "<|" not in text),
    *([("user", "Say something."), ("assistant", text)] for text in TEXTS if "<|" not in text),
]


@pytest.mark.parametrize("variant", ["gen", "stream"])
@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_rendering_equals_transformers(variant: str, turns: list[tuple[str, str]]) -> None:
    oracle = transformers.AutoTokenizer.from_pretrained(DEMO / variant)
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = oracle.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False)
    template = ChatTemplate.load(DEMO / variant)
    assert template.render([Message(*turn) for turn in turns], LIMIT) == expected


OBJECT = {"content": "<|im_start|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
QWEN3 = """
{%- if tools %}{{- 'tools' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' + reasoning_content + message.content }}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}{{- tool_call.name }}{%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
    {%- endif %}
    {%- if loop.previtem and loop.previtem.role != message.role %}{{- '' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
"""How Qwen3's own template asks for fields that a message may lack."""
GIVEN: dict[str, tuple[Any, ...]] = {
    "eos and pad": ("{{ messages[0].content }}{{ eos_token }}{{ pad_token }}", {}, None),
    "a token as an object": (
        "{{ bos_token }}{{ messages[0].content }}",
        {"bos_token": {"__type": "AddedToken", **OBJECT}},
        None,
    ),
    "none is not defined": ("{{ bos_token is defined }}{{ unk_token is defined }}{{ eos_token is defined }}", {}, None),
    "a default": (
        "{{ bos_token | default('<think>') }}{{ nothing | default('x') }}{{ messages[0].content }}",
        {},
        None,
    ),
    "what is given": ("{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ enable_thinking }}", {}, None),
    "what is not": (
        "{{ date_string is defined }}{{ continue_final_message is defined }}{{ x is undefined }}",
        {},
        None,
    ),
    "json": (
        "{{ messages | tojson }}{{ messages | tojson(ensure_ascii=true, indent=2, sort_keys=true) }}"
        "{{ messages[0] | tojson(separators=(',', ':')) }}",
        {},
        None,
    ),
    "the map": ("{{ bos_token }}{{ eos_token }}", {"added_tokens_decoder": "gone"}, {"bos_token": OBJECT}),
    "the map beside a list": (
        "{{ bos_token is defined }}{{ eos_token }}",
        {"bos_token": None},
        {"bos_token": OBJECT, "eos_token": "<think>"},
    ),
    "the time": ("{{ strftime_now('%Y') }}{{ messages[0].content }}", {}, None),
    "Qwen3's own form": (QWEN3, {}, None),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_template_is_given_what_transformers_gives(tmp_path: Path, name: str) -> None:
    folder = with_template(tmp_path, *GIVEN[name])
    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    template = ChatTemplate.load(folder)
    for roles in (("user",), ("system", "user", "assistant", "user"), ("user", "assistant")):
        messages = [{"role": role, "content": "Größe!"} for role in roles]
        expected = oracle.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False)
        assert template.render([Message(**each) for each in messages], LIMIT) == expected
