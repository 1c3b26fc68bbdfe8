"""What the adapters read of LiteLLM's requests and answers, and in which order they give what is cleared."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk
from qwen3guard_apps.adapters import litellm_reader as reader
from qwen3guard_apps.adapters.cleared import ClearedItems
from qwen3guard_apps.adapters.langchain_reader import Written
from qwen3guard_apps.openai.api_error import ApiError
from qwen3guard_contract.errors import GuardError, InvalidMessages
from support.later import litellm, litellm_types

pytestmark = pytest.mark.filterwarnings("ignore:Item:UserWarning", "ignore:Pydantic:UserWarning")  # of LiteLLM's types
USER = {"role": "user", "content": "How do I bake bread?"}
BAD = "Take the knife."
Chunk = list[tuple[int, str]]


class Found(Exception):
    pass


async def given_by(chunks: list[Chunk], bad: str, *, late: bool = False) -> tuple[list[Chunk], bool]:
    """What comes of the chunks if a text that has `bad` in it is flagged; the guard may be later than the LLM."""

    async def written() -> AsyncIterator[Chunk]:
        for chunk in chunks:
            yield chunk
            if not late:
                await asyncio.sleep(0)

    async def moderate(_: int, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        text, cleared = "", 0
        async for piece in pieces:
            text += piece
            await asyncio.sleep(0)
            if bad in text:
                raise Found
            yield text[cleared : max(cleared, len(text) - len(bad))]
            cleared = max(cleared, len(text) - len(bad))
        yield text[cleared:]

    def texts(chunk: Chunk) -> dict[int, str]:
        found: dict[int, str] = {}
        for choice, text in chunk:
            found[choice] = found.get(choice, "") + text
        return {choice: text for choice, text in found.items() if text}

    came = []
    try:
        async for chunk in ClearedItems(written(), texts, moderate):
            came.append(chunk)
    except Found:
        return came, True
    return came, False


CHUNKS = st.lists(st.lists(st.tuples(st.integers(0, 2), st.text("abx", max_size=3)), max_size=3), max_size=12)


@given(CHUNKS, st.booleans())
def test_chunks_come_in_their_order_and_none_that_is_flagged(chunks: list[Chunk], late: bool) -> None:
    came, flagged = asyncio.run(given_by(chunks, "xx", late=late))
    assert came == chunks[: len(came)]
    whole = ["".join(text for chunk in chunks for each, text in chunk if each == choice) for choice in range(3)]
    shown = ["".join(text for chunk in came for each, text in chunk if each == choice) for choice in range(3)]
    assert flagged == any("xx" in text for text in whole)
    assert not any("xx" in text for text in shown)
    if not flagged:
        assert came == chunks


def test_an_error_of_the_llm_comes_after_what_was_written_before_it() -> None:
    async def breaks() -> AsyncIterator[str]:
        yield "a"
        yield "b"
        raise OSError("gone")

    async def moderate(_: int, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        async for piece in pieces:
            yield piece

    async def run() -> list[str]:
        came = []
        try:
            async for item in ClearedItems(breaks(), lambda item: {0: item}, moderate):
                came.append(item)
        except OSError as error:
            came.append(str(error))
        return came

    assert asyncio.run(run()) == ["a", "b", "gone"]


def chunk(delta: dict[str, Any], **more: Any) -> Any:
    choices: list[Any] = [{"index": 0, "delta": delta, "finish_reason": None}]
    return litellm_types.ModelResponseStream(choices=choices, **more)


def message(**fields: Any) -> Any:
    return litellm.ModelResponse(
        choices=[{"index": 0, "message": {"role": "assistant", **fields}, "finish_reason": "stop"}]
    )


CALL = {"id": "c", "type": "function", "index": 0, "function": {"name": "cut", "arguments": BAD}}


@pytest.mark.parametrize(
    "fields",
    [
        {"content": BAD},
        {"content": None, "reasoning_content": BAD},
        {"content": None, "tool_calls": [CALL]},
        {"content": None, "function_call": {"name": "cut", "arguments": BAD}},
        {"content": None, "thinking_blocks": [{"type": "thinking", "thinking": BAD, "signature": "aGk="}]},
    ],
)
def test_text_is_read_where_it_stands(fields: dict[str, Any]) -> None:
    assert reader.texts_of(message(**fields)) == {0: BAD}
    assert reader.texts_of(chunk(fields)) == {0: BAD}


def test_a_mirrored_field_is_read_once() -> None:
    fields = {"reasoning_content": BAD, "thinking_blocks": [{"type": "thinking", "thinking": BAD, "signature": "aGk="}]}
    found = message(content="Fine.", **fields)
    assert reader.texts_of(found) == {0: BAD + "Fine."}
    assert found.choices[0].message.thinking_blocks


@pytest.mark.parametrize(
    "delta",
    [
        {"annotations": [{"type": "url_citation", "url_citation": {"title": BAD}}]},
        {"documents": BAD},
        {"provider_specific_fields": {"text": BAD}},
        {"role": BAD},
        {"thinking_blocks": [{"type": "redacted_thinking", "data": BAD}]},
    ],
)
def test_what_is_not_read_is_removed(delta: dict[str, Any]) -> None:
    fields = {"content": "Fine."} | delta
    for answer in [chunk(fields), *([message(**fields)] if "role" not in delta else [])]:
        assert reader.texts_of(answer) == {0: "Fine."}
        assert BAD not in answer.model_dump_json()


def test_text_around_the_message_is_removed() -> None:
    answer = chunk({"content": "Fine."}, citations=[BAD], system_fingerprint=BAD, provider_specific_fields={"a": BAD})
    choice = answer.choices[0]
    choice.text, choice.logprobs, choice.finish_reason = BAD, {"content": [{"token": BAD}]}, BAD
    reader.texts_of(answer)
    assert BAD not in answer.model_dump_json()
    assert answer.choices[0].delta.content == "Fine."


def test_an_answer_of_another_kind_is_refused() -> None:
    for answer in (b"data: {}", {"type": "ping"}, litellm.EmbeddingResponse(), None):
        with pytest.raises(InvalidMessages, match="cannot be judged"):
            reader.texts_of(answer)


def test_calls_without_a_reader_are_known_by_their_type_or_their_answer() -> None:
    assert reader.call_type_of({"input": "a"}, litellm.EmbeddingResponse()) in reader.WITHOUT_READER
    assert {"aembedding", "arerank", "amoderation"} <= set(reader.WITHOUT_READER)


def turns(data: dict[str, Any], call_type: str) -> list[str]:
    asked = reader.asked(data, call_type)
    return [f"{turn['role']}: {turn['content']}" for each in asked.conversations for turn in each.messages]


def test_the_requests_of_each_route_are_read() -> None:
    assert turns({"messages": [USER]}, "acompletion") == ["user: How do I bake bread?"]
    assert turns({"prompt": ["Hi.", "Ho."], "n": 2}, "atext_completion") == ["user: Hi.", "user: Ho."]
    blocks = [
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm. ", "signature": "x y"},
                {"type": "redacted_thinking", "data": "aGk="},
                {"type": "text", "text": "Look: "},
                {"type": "tool_use", "id": "t", "name": "look", "input": {"for": "bread"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "Flour."}]},
    ]
    wanted = ["user: How do I bake bread?", 'assistant: Hm. Look: {"for": "bread"}', "user: Flour."]
    assert turns({"system": "Brief.", "messages": blocks}, "anthropic_messages") == ["system: Brief.", *wanted]
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "How do I bake bread?"}]},
        {
            "type": "reasoning",
            "id": "r",
            "summary": [{"type": "summary_text", "text": "Hm."}],
            "encrypted_content": "x",
        },
        {"type": "function_call", "call_id": "t", "name": "look", "arguments": '{"for": "bread"}'},
        {"type": "function_call_output", "call_id": "t", "output": "Flour."},
    ]
    wanted[1:2] = ["assistant: Hm.", 'assistant: {"for": "bread"}']
    assert turns({"instructions": "Brief.", "input": items}, "aresponses") == ["system: Brief.", *wanted]
    assert turns({"input": "Hi."}, "aresponses") == ["user: Hi."]


@pytest.mark.parametrize(
    ("call_type", "data", "named"),
    [
        ("acompletion", {"messages": [USER | {"documents": BAD}]}, "documents"),
        ("acompletion", {}, "list"),
        ("atext_completion", {"prompt": [1, 2]}, "token ids"),
        ("anthropic_messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ("aresponses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ("aresponses", {"input": [{"type": "computer_call"}]}, "computer_call"),
        ("aimage_generation", {"prompt": "A cat."}, "aimage_generation"),
    ],
)
def test_a_request_that_cannot_be_read_is_refused_by_name(call_type: str, data: dict[str, Any], named: str) -> None:
    with pytest.raises((GuardError, ApiError), match=named):
        reader.asked(data, call_type)


def test_a_choice_that_was_not_asked_for_is_refused() -> None:
    asked = reader.asked({"prompt": ["Hi.", "Ho."], "n": 2}, "atext_completion")
    assert [asked.of_choice(index).messages[0]["content"] for index in range(4)] == ["Hi.", "Hi.", "Ho.", "Ho."]
    with pytest.raises(InvalidMessages, match="not asked for"):
        asked.of_choice(4)


def test_a_field_that_a_stream_comes_back_to_is_read_with_its_end() -> None:
    """A client puts its pieces together, and another field between them hides no word."""
    pieces: list[dict[str, Any]] = [{"content": "Take the kn"}, {"reasoning_content": " and"}, {"content": "ife."}]
    streamed = reader.StreamedTexts()
    found = "".join(
        text or ""
        for delta in pieces
        for text in streamed(litellm_types.ModelResponseStream(choices=[{"index": 0, "delta": delta}])).values()
    )
    assert BAD in found
    kwargs = [{"content": each.get("content", ""), "additional_kwargs": each} for each in pieces]
    for each in kwargs:
        each["additional_kwargs"].pop("content", None)
    written = Written(AIMessageChunk(**each) for each in kwargs)
    assert BAD in "".join(written.texts())
    assert [chunk.content for chunk in written.cleared(10**6)] == ["Take the kn", "", "ife."]


def test_letters_of_two_fields_by_turns_are_judged_as_each_field_at_the_end() -> None:
    deltas = [{"content": letter, "reasoning_content": "ok "} for letter in BAD]
    streamed = reader.StreamedTexts()
    chunks = [litellm_types.ModelResponseStream(choices=[{"index": 0, "delta": delta}]) for delta in deltas]
    judged: list[str] = []

    async def written() -> AsyncIterator[Any]:
        for chunk in chunks:
            yield chunk

    async def moderate(_: int, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        async for piece in pieces:
            judged.append(piece)
            yield piece

    async def given() -> list[Any]:
        return [chunk async for chunk in ClearedItems(written(), streamed, moderate, streamed.fields)]

    assert asyncio.run(given()) == chunks
    assert sorted(judged[-2:]) == sorted([BAD, "ok " * len(BAD)])
    assert sum(map(len, judged)) <= 3 * sum(len(each) for delta in deltas for each in delta.values()) + 512

    reasoning = {"reasoning_content": "ok "}
    taken = Written(AIMessageChunk(content=letter, additional_kwargs=reasoning) for letter in BAD)
    assert len(list(taken.texts())) == len(BAD)
    assert sorted(taken.late()) == sorted([BAD, "ok " * len(BAD)])
    begun = list(taken.cleared(10**6))
    assert list(taken.rest(10**6)) == []
    assert "".join(str(chunk.content) for chunk in [*begun, *taken.cleared(math.inf)]) == BAD
