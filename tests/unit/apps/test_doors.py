"""Each API that the proxy guards: the same answer gets the same verdict through each, and nothing passes beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qwen3guard_apps.doors.anthropic import MessagesDoor
from qwen3guard_apps.doors.completions import CompletionsDoor
from qwen3guard_apps.doors.responses import ResponsesDoor
from qwen3guard_apps.doors.responses_written import WrittenResponse
from qwen3guard_apps.doors.sealed import opened, sealed
from qwen3guard_apps.openai import request as request_reader
from qwen3guard_apps.openai.api_error import ApiError
from support.door_apis import APIS, TOOL, Api, Messages, Responses, Said, Shown, events_of
from support.lengths import times
from support.unserved_proxy import LlmAnswer, Received, receive
from support.word_guard import is_unsafe

PROMPT = "What shall we eat?"
doors = pytest.mark.parametrize("api", APIS, ids=lambda api: api.name)
with_calls = pytest.mark.parametrize("api", [api for api in APIS if not api.only_text], ids=lambda api: api.name)
whole_or_streamed = pytest.mark.parametrize("stream", [False, True])


short = settings(max_examples=times(100, 5_000), deadline=None, suppress_health_check=list(HealthCheck), database=None)


def answered(api: Api, said: Said, *, stream: bool, prompt: str = PROMPT, **settings: Any) -> Received:
    if stream:
        answer = LlmAnswer([api.stream(said)])
    else:
        answer = LlmAnswer([json.dumps(api.whole(said)).encode()], content_type="application/json")
    return receive(answer, api.asked(prompt, stream=stream), door=api.door, **settings)


def shown(api: Api, found: Received, *, stream: bool) -> Shown:
    assert found.status == 200, found.text
    return api.read_events(found.events) if stream else api.read_whole(json.loads(found.text))


@doors
@whole_or_streamed
def test_what_is_safe_arrives_whole(api: Api, stream: bool) -> None:
    said = Said(["rice", " and", " bread"], ["soup?", " no"], ['{"dish": ', '"rice"}'])
    if api.only_text:
        said = Said(said.text)
    found = shown(api, answered(api, said, stream=stream), stream=stream)
    assert found[:4] == ("rice and bread", "".join(said.reasoning), "".join(said.arguments), "stop")
    assert found.guard["flagged"] is False


@doors
@whole_or_streamed
@pytest.mark.parametrize("on_flag", ["stop", "mark"])
def test_an_unsafe_answer_is_cut_where_a_chat_is(api: Api, stream: bool, on_flag: str) -> None:
    said = Said(["rice", " and zyqs", "tab him", " then"])
    chat = APIS[0]
    found, of_chat = (
        shown(each, answered(each, said, stream=stream, on_flag=on_flag), stream=stream) for each in (api, chat)
    )
    assert found == of_chat
    assert found.text == ("rice and" if on_flag == "stop" else "rice and zyqstab him then")
    assert found.ended == ("content_filter" if on_flag == "stop" else "stop")
    assert found.guard["position"] == len("rice and")


@doors
@whole_or_streamed
@pytest.mark.parametrize("check", ["while", "before"])
def test_an_unsafe_prompt_has_an_empty_answer(api: Api, stream: bool, check: str) -> None:
    found = answered(api, Said(["rice"]), stream=stream, prompt="How to xkill him?", prompt_check=check)
    told = shown(api, found, stream=stream)
    assert told[:4] == ("", "", "", "content_filter")
    assert told.guard["flagged_by"] == "prompt"


@doors
@whole_or_streamed
def test_a_flag_can_be_an_error_of_the_api(api: Api, stream: bool) -> None:
    found = answered(api, Said(["rice", " and zyqstab", " him"]), stream=stream, on_flag="error")
    assert not is_unsafe(found.text)
    body = found.events[-1] if stream else json.loads(found.text)
    assert body["error"]["code"] == "content_filter"
    assert body["error"]["guard"]["flagged"]
    if isinstance(api, Messages):
        assert body["type"] == "error"
        assert body["error"]["type"] == "invalid_request_error"
    if isinstance(api, Responses) and stream:
        assert (body["type"], body["code"]) == ("error", "content_filter")


@with_calls
@whole_or_streamed
@pytest.mark.parametrize(
    "said",
    [
        Said(["rice"], ["we", " zyqstab him", " first"]),
        Said(["rice"], (), ['{"dish": "', 'zyqs\\u0074ab him"}']),
        Said(["rice"], (), ['{"dish": "zy', 'qstab him"}']),
    ],
    ids=["reasoning", "escaped", "cut"],
)
def test_reasoning_and_arguments_are_judged(api: Api, stream: bool, said: Said) -> None:
    found = answered(api, said, stream=stream)
    assert not is_unsafe(found.text)
    assert "t\\\\u0074ab" not in found.text
    assert shown(api, found, stream=stream).ended == "content_filter"


@with_calls
@whole_or_streamed
def test_a_call_that_is_flagged_cannot_be_run(api: Api, stream: bool) -> None:
    found = shown(api, answered(api, Said((), (), ['{"dish": "', 'zyqstab"}']), stream=stream), stream=stream)
    assert "zyqs" not in found.arguments
    with pytest.raises(ValueError):  # noqa: PT011
        json.loads(found.arguments)


@doors
@whole_or_streamed
def test_an_error_of_the_llm_keeps_its_status_and_its_words_where_they_are_safe(api: Api, stream: bool) -> None:
    for words, told in (("It is busy.", True), ("xkill it", False)):
        error = {"type": "error", "error": {"type": "overloaded_error", "message": words}}
        answer = LlmAnswer([json.dumps(error).encode()], 529, "application/json")
        found = receive(answer, api.asked(PROMPT, stream=stream), door=api.door)
        assert (words in found.text) is told
        assert found.status == 529 or stream
        answer = LlmAnswer([events_of([error])])
        found = receive(answer, api.asked(PROMPT, stream=True), door=api.door)
        assert (words in found.text) is told
        assert "error" in found.events[-1]


@doors
@pytest.mark.parametrize("body", ["rice", 7, None, [], {}, {"choices": "rice", "content": "rice", "output": "rice"}])
def test_what_is_no_answer_of_the_api_is_an_error(api: Api, body: Any) -> None:
    answer = LlmAnswer([json.dumps(body).encode()], content_type="application/json")
    for stream in (False, True):
        found = receive(answer, api.asked(PROMPT, stream=stream), door=api.door, begun=False)
        assert found.status == 502
        assert "rice" not in found.text


@doors
def test_a_stream_that_breaks_off_does_not_look_whole(api: Api) -> None:
    events = api.events(Said(["rice", " and"]))
    cut = next(number for number, event in enumerate(events) if " and" in json.dumps(event)) + 1
    found = receive(LlmAnswer([events_of(events[:cut])]), api.asked(PROMPT, stream=True), door=api.door)
    assert "broke off" in found.text
    assert "error" in found.events[-1]
    with_end = receive(LlmAnswer([events_of(events)]), api.asked(PROMPT, stream=True), door=api.door)
    assert "broke off" not in with_end.text


@doors
def test_a_whole_answer_to_a_request_for_a_stream_is_read(api: Api) -> None:
    answer = LlmAnswer([json.dumps(api.whole(Said(["rice"]))).encode()], content_type="application/json")
    found = receive(answer, api.asked(PROMPT, stream=True), door=api.door)
    assert shown(api, found, stream=True).text == "rice"


FIELDS = (
    *("id", "object", "created", "created_at", "model", "usage", "choices", "error", "type", "index", "delta", "text"),
    *("content", "content_block", "message", "stop_reason", "stop_sequence", "thinking", "signature", "data", "name"),
    *("input", "partial_json", "citations", "role", "output", "item", "response", "output_index", "content_index"),
    *("arguments", "summary", "encrypted_content", "annotations", "logprobs", "status", "incomplete_details", "part"),
    *("refusal", "call_id", "item_id", "finish_reason", "instructions", "guard", "x_vendor", "xkill all"),
)
KINDS = ("text", "thinking", "tool_use", "redacted_thinking", "server_tool_use", "output_text", "web_search_call")
WORDS = st.lists(st.sampled_from(("rice", " and", " zyqs", "tab him", " xkill all", "zyqstab")), max_size=3).map(
    "".join
)
ANY = st.recursive(
    st.one_of(WORDS, st.sampled_from([None, True, 0, 1, -1, 2.5, "", *KINDS])),
    lambda deeper: st.one_of(
        st.lists(deeper, max_size=2), st.dictionaries(st.sampled_from(FIELDS), deeper, max_size=3)
    ),
    max_leaves=6,
)
PIECES = st.lists(WORDS, max_size=4)


def holders(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [value] if isinstance(value, dict | list) and value else []
    return own + [each for deeper in inner for each in holders(deeper)]


def changed(value: Any, data: st.DataObject) -> None:
    holder = data.draw(st.sampled_from(holders(value)))
    if isinstance(holder, dict):
        holder[data.draw(st.sampled_from(FIELDS))] = data.draw(ANY)
    else:
        holder[data.draw(st.integers(0, len(holder) - 1))] = data.draw(ANY)


@doors
@pytest.mark.trial
@short
@given(st.data())
def test_no_unsafe_word_reaches_the_client(api: Api, data: st.DataObject) -> None:
    arguments = data.draw(st.sampled_from([(), ('{"dish": "', 'zyqstab"}'), ('{"dish": "rice"}',)]))
    said = Said(data.draw(PIECES), data.draw(PIECES), arguments)
    stream = data.draw(st.booleans())
    body: Any = api.events(said) if stream else api.whole(said)
    for _ in range(data.draw(st.integers(0, 4))):
        changed(body, data)
    if stream and data.draw(st.booleans()):
        body.insert(data.draw(st.integers(0, len(body))), data.draw(ANY))
    written = events_of(body) if stream else json.dumps(body).encode()
    answer = LlmAnswer([written], content_type="text/event-stream" if stream else "application/json")
    found = receive(answer, api.asked(PROMPT, stream=stream), door=api.door)
    assert not is_unsafe(found.text), found.text


SENTENCE = "zyqstab him"
UNJUDGED = ("model", "tools", "tool_choice", "metadata", "user", "stop", "stop_sequences", "text", "response_format")
"""What passes as it is: docs/proxy.md names it."""


def requests(api: Api) -> list[dict[str, Any]]:
    """Each with a conversation of several kinds of messages."""
    asked = api.asked(PROMPT, stream=False)
    if isinstance(api, Messages):
        blocks = [
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
            {"type": "text", "text": "rice"},
            {"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": {"dish": "rice"}},
        ]
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "5"}]}
        turns = [{"role": "assistant", "content": blocks}, {"role": "user", "content": [result]}]
        return [asked, asked | {"system": "Be kind.", "messages": [*asked["messages"], *turns]}]
    if isinstance(api, Responses):
        items = [
            {"role": "user", "content": [{"type": "input_text", "text": PROMPT}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "call_1", "name": TOOL, "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "5"},
        ]
        return [asked, asked | {"instructions": "Be kind.", "input": items}]
    return [asked]


@doors
@pytest.mark.trial
@short
@given(st.data())
def test_what_a_caller_writes_is_judged_or_not_sent(api: Api, data: st.DataObject) -> None:
    request = json.loads(json.dumps(data.draw(st.sampled_from(requests(api)))))
    for _ in range(data.draw(st.integers(1, 3))):
        holder = data.draw(st.sampled_from(holders(request)))
        value = data.draw(st.sampled_from([SENTENCE, [SENTENCE], {"type": "text", "text": SENTENCE}, {SENTENCE: 1}]))
        if isinstance(holder, dict):
            holder[data.draw(st.sampled_from([*holder, *FIELDS, "system", "prompt", "suffix", SENTENCE]))] = value
        else:
            holder[data.draw(st.integers(0, len(holder) - 1))] = value
    try:
        read = api.door.read(request, ())
    except ApiError:
        return
    sent = json.dumps({name: value for name, value in read.sent.items() if name not in UNJUDGED})
    judged = "".join(
        each["content"] for conversation in read.conversations for each in conversation.messages
    ) + "".join(conversation.begun for conversation in read.conversations)
    assert SENTENCE not in sent or SENTENCE in judged


@pytest.mark.parametrize(
    ("api", "more", "said"),
    [
        ("completions", {"prompt": [1, 2]}, "ids of tokens"),
        ("completions", {"prompt": [[1, 2]]}, "ids of tokens"),
        ("completions", {"prompt": None}, "ids of tokens"),
        ("completions", {"prompt": []}, "ids of tokens"),
        ("completions", {"suffix": ["x"]}, "suffix"),
        ("completions", {"prompt": ["x"] * 3, "n": 3}, "n times the number of prompts is 9"),
        ("responses", {"previous_response_id": "resp_1"}, "previous_response_id"),
        ("responses", {"conversation": {"id": "conv_1"}}, "conversation"),
        ("responses", {"prompt": {"id": "pmpt_1"}}, "prompt"),
        ("responses", {"background": True}, "background"),
        ("responses", {"tools": [{"type": "web_search"}]}, "web_search"),
        ("responses", {"input": [{"type": "item_reference", "id": "msg_1"}]}, "item_reference"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ("responses", {"input": 5}, "input"),
        ("responses", {"instructions": ["x"]}, "instructions"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "document", "title": "x"}]}]}, "document"),
        ("messages", {"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ("messages", {"container": "container_1"}, "container"),
        ("messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ("messages", {"messages": "x"}, "list"),
        ("messages", {"messages": [{"role": "xkill him", "content": [{"type": "tool_result"}]}]}, "role of message 1"),
        ("messages", {"stream": "yes"}, "stream"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_a_sentence(api: str, more: dict[str, Any], said: str) -> None:
    (own,) = [each for each in APIS if each.name == api]
    found = receive(LlmAnswer([]), own.asked(PROMPT, stream=False) | more, door=own.door)
    assert found.status == 400
    assert said in json.loads(found.text)["error"]["message"]


def test_each_prompt_of_a_text_completion_is_judged_by_itself() -> None:
    choices = [
        {"index": index, "text": text, "finish_reason": "stop"} for index, text in enumerate(("a", "b", "c", "d"))
    ]
    body = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "fake", "choices": choices}
    answer = LlmAnswer([json.dumps(body).encode()], content_type="application/json")
    asked = {"model": "fake", "prompt": ["What shall we eat?", "How to xkill him?"], "n": 2}
    told = json.loads(receive(answer, asked, door=CompletionsDoor()).text)["choices"]
    assert [each["text"] for each in told] == ["a", "b", "", ""]
    assert [each["finish_reason"] for each in told] == ["stop", "stop", "content_filter", "content_filter"]


def test_the_end_that_a_text_completion_is_to_have_is_judged_with_its_prompt() -> None:
    read = CompletionsDoor().read({"model": "fake", "prompt": "def f():", "suffix": "zyqstab him"}, ())
    assert read.conversation.messages == [{"role": "user", "content": "def f():\nzyqstab him"}]
    assert read.sent["suffix"] == "zyqstab him"


def test_log_probabilities_of_a_text_completion_go_out_with_their_own_text() -> None:
    logprobs = {
        "tokens": ["rice", " and"],
        "token_logprobs": [-1.0, -0.5],
        "top_logprobs": [{"rice": -1.0, "zyqs": -2.0}, {" and": -0.5}],
        "text_offset": [0, 4],
    }
    choice = {"index": 0, "text": "rice and", "finish_reason": "stop", "logprobs": logprobs}
    body = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "fake", "choices": [choice]}
    answer = LlmAnswer([json.dumps(body).encode()], content_type="application/json")
    asked = {"model": "fake", "prompt": PROMPT, "logprobs": 2}
    told = json.loads(receive(answer, asked, door=CompletionsDoor()).text)["choices"][0]["logprobs"]
    assert told == logprobs | {"top_logprobs": [{"rice": -1.0}, {" and": -0.5}]}


def test_what_nobody_reads_is_sealed_and_comes_back_as_it_was() -> None:
    """No words can be written to the client in a signature, and the LLM gets its own back."""
    signature = "zyqstab_him"
    content = [
        {"type": "thinking", "thinking": "hm", "signature": signature},
        {"type": "redacted_thinking", "data": signature},
        {"type": "text", "text": "rice"},
    ]
    body = Messages().whole(Said()) | {"content": content}
    for stream in (False, True):  # a whole answer to both
        answer = LlmAnswer([json.dumps(body).encode()], content_type="application/json")
        found = receive(answer, Messages().asked(PROMPT, stream=stream), door=MessagesDoor())
        assert not is_unsafe(found.text)
        assert sealed(signature) in found.text
        assert "redacted_thinking" in found.text
    answered_content = json.loads(
        receive(
            LlmAnswer([json.dumps(body).encode()], content_type="application/json"),
            Messages().asked(PROMPT, stream=False),
            door=MessagesDoor(),
        ).text
    )["content"]
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answered_content}]
    again = Messages().asked(PROMPT, stream=False) | {"messages": [*turns, {"role": "user", "content": "Why?"}]}
    assert MessagesDoor().read(again, ()).sent["messages"][1]["content"] == content
    with pytest.raises(ApiError):
        opened("Build a bomb.", "The signature")
    with pytest.raises(ApiError):
        opened(sealed("Build a bomb."), "The signature")


def test_the_encrypted_reasoning_of_a_response_comes_back_as_it_was() -> None:
    found = answered(Responses(), Said(["rice"], ["hm"]), stream=True)
    output = found.events[-1]["response"]["output"]
    assert output[0]["encrypted_content"] == sealed("gAAAA1")
    items = [{"role": "user", "content": PROMPT}, *output, {"role": "user", "content": "Why?"}]
    read = ResponsesDoor().read({"model": "fake", "input": items}, ())
    assert read.sent["input"][1]["encrypted_content"] == "gAAAA1"
    assert [each["content"] for each in read.conversation.messages] == [PROMPT, "hm", "rice", "Why?"]


def test_what_else_a_block_or_an_item_has_is_not_sent() -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "5", "role": "xkill", "function": "xkill"}
    call = {"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": {}, "function": {"x": "xkill"}, "xkill": 1}
    text = {"type": "text", "text": "rice", "citations": [{"cited_text": "xkill"}]}
    turns = [{"role": "assistant", "content": [text, call]}, {"role": "user", "content": [result]}]
    read = MessagesDoor().read(Messages().asked(PROMPT, stream=False) | {"messages": turns}, ())
    assert "xkill" not in json.dumps(read.sent)
    assert "messages.content.citations" in read.removed
    item = {"role": "user", "content": "rice", "arguments": "xkill", "xkill": 1, "id": "xkill them all"}
    responded = ResponsesDoor().read({"model": "fake", "input": [item]}, ())
    assert "xkill" not in json.dumps(responded.sent)
    assert responded.removed == ("input.arguments", "input.xkill", "input.id")


def test_a_tools_result_is_judged_as_a_turn() -> None:
    for api in (Messages(), Responses()):
        _, request = requests(api)
        text = json.dumps(request).replace('"5"', '"zyqstab him"')
        read = api.door.read(json.loads(text), ())
        assert read.conversation.messages[-1] == {"role": "user", "content": "zyqstab him"}
        assert read.conversation.messages[0]["role"] == "system"


@pytest.mark.parametrize("kind", ["server_tool_use", "web_search_tool_result", "image"])
def test_a_block_of_another_kind_is_an_error(kind: str) -> None:
    block = {"type": kind, "id": "srvtoolu_1", "text": "rice"}
    start = {"type": "content_block_start", "index": 0, "content_block": block}
    events = Messages().events(Said())
    for body, stream in ((events_of([events[0], start]), True), (json.dumps({"content": [block]}).encode(), False)):
        answer = LlmAnswer([body], content_type="text/event-stream" if stream else "application/json")
        found = receive(answer, Messages().asked(PROMPT, stream=stream), door=MessagesDoor())
        assert "upstream_unreadable" in found.text
        assert "rice" not in found.text


def test_a_thinking_that_is_cut_has_no_signature() -> None:
    body = Messages().whole(Said(["rice"], ["we", " zyqstab him"]))
    answer = LlmAnswer([json.dumps(body).encode()], content_type="application/json")
    told = json.loads(receive(answer, Messages().asked(PROMPT, stream=False), door=MessagesDoor()).text)
    assert told["content"] == [{"type": "thinking", "thinking": "we", "signature": ""}]


def test_blocks_that_come_back_are_an_error() -> None:
    """A client joins the pieces of a block by its number."""
    events = Messages().events(Said(["rice"], ["hm"]))
    again = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": " zyqs"}}
    told = events_of([*events[:-2], again, *events[-2:]])
    found = receive(LlmAnswer([told]), Messages().asked(PROMPT, stream=True), door=MessagesDoor())
    assert "upstream_unreadable" in found.text
    late = {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": " zyqs"}}
    found = receive(
        LlmAnswer([events_of([*events[:-2], late, *events[-2:]])]),
        Messages().asked(PROMPT, stream=True),
        door=MessagesDoor(),
    )
    assert "upstream_unreadable" in found.text
    events = Responses().events(Said(["rice"], ["hm"]))
    late = {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": " zyqs"}
    found = receive(
        LlmAnswer([events_of([*events[:-1], late, events[-1]])]),
        Responses().asked(PROMPT, stream=True),
        door=ResponsesDoor(),
    )
    assert "upstream_unreadable" in found.text


@pytest.mark.parametrize("kept", ["response.completed", "output_item.done", "output_text.done"])
def test_a_response_without_deltas_is_shown_from_its_last_events(kept: str) -> None:
    events = Responses().events(Said(["rice", " and"]))
    told = [each for each in events if "response.c" in each["type"] or kept in each["type"]]
    found = receive(LlmAnswer([events_of(told)]), Responses().asked(PROMPT, stream=True), door=ResponsesDoor())
    assert Responses().read_events(found.events).text == "rice and"


def test_a_response_that_failed_or_is_to_be_fetched_later_is_an_error() -> None:
    body = Responses().whole(Said(["rice"]))
    failed = body | {"status": "failed", "error": {"code": "server_error", "message": "It broke."}}
    for told, words in ((failed, "It broke."), (body | {"status": "queued"}, "not what its API describes")):
        answer = LlmAnswer([json.dumps(told).encode()], content_type="application/json")
        found = receive(answer, Responses().asked(PROMPT, stream=False), door=ResponsesDoor())
        assert found.status == 502
        assert words in found.text
    events = [{"type": "response.failed", "response": failed}]
    found = receive(LlmAnswer([events_of(events)]), Responses().asked(PROMPT, stream=True), door=ResponsesDoor())
    assert "It broke." in found.events[-1]["error"]["message"]


ITEMS: dict[str, dict[str, Any]] = {
    "message": {"type": "message", "content": [{"type": "output_text", "text": "rice"}]},
    "reasoning": {"type": "reasoning", "summary": [{"type": "summary_text", "text": "rice"}]},
    "function_call": {"type": "function_call", "call_id": "call_1", "name": TOOL, "arguments": "rice"},
    "custom_tool_call": {"type": "custom_tool_call", "call_id": "call_1", "name": TOOL, "input": "rice"},
}
EVENTS = {
    "output_text": "message",
    "refusal": "message",
    "reasoning_text": "reasoning",
    "reasoning_summary_text": "reasoning",
    "function_call_arguments": "function_call",
    "custom_tool_call_input": "custom_tool_call",
}


@pytest.mark.parametrize("item", ITEMS)
def test_a_part_that_its_item_cannot_have_is_an_error(item: str) -> None:
    begun = Responses().events(Said())[:1]
    begun.append({"type": "response.output_item.added", "output_index": 0, "item": ITEMS[item]})
    later = [
        (of_item, {"type": f"response.{kind}.delta", "output_index": 0, "content_index": 0, "delta": " and"})
        for kind, of_item in EVENTS.items()
    ]
    grown = {kind: json.loads(json.dumps(each).replace("rice", "rice and")) for kind, each in ITEMS.items()}
    later += [
        (kind, {"type": "response.output_item.done", "output_index": 0, "item": each}) for kind, each in grown.items()
    ]
    end = {"type": "response.completed", "response": Responses().whole(Said())}
    for of_item, event in later:
        answer = LlmAnswer([events_of([*begun, event, end])])
        found = receive(answer, Responses().asked(PROMPT, stream=True), door=ResponsesDoor())
        assert (found.events[-1]["type"] == "response.completed") is (of_item == item), event
        assert ("upstream_unreadable" in found.text) is (of_item != item)


@doors
@pytest.mark.parametrize("kind", [["x"], {"x": 1}, 5, None])
def test_an_error_whose_type_is_no_text_is_told(api: Api, kind: Any) -> None:
    error = {"error": {"type": kind, "message": "It is busy."}}
    answer = LlmAnswer([json.dumps(error).encode()], 400, "application/json")
    found = receive(answer, api.asked(PROMPT, stream=False), door=api.door)
    assert (found.status, "It is busy." in found.text) == (400, True)
    item = {"type": kind, "text": "rice"}
    body = api.whole(Said()) | {"output": [item], "content": [item], "choices": item}
    answer = LlmAnswer([json.dumps(body).encode()], content_type="application/json")
    assert receive(answer, api.asked(PROMPT, stream=False), door=api.door).status == 502


def test_a_fault_of_the_proxys_own_ends_a_stream_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of HTTP in the middle of another one would be all that a client gets."""

    def fail(*_: Any) -> Any:
        raise KeyError("xkill")

    monkeypatch.setattr(WrittenResponse, "write", fail)
    found = answered(Responses(), Said(["rice"]), stream=True)
    assert found.events[-1]["code"] == "internal"
    assert "xkill" not in found.text


def test_the_input_of_a_call_is_json_or_a_text() -> None:
    for text, shown_as in (('{"a": 1}', {"a": 1}), ('{"a": NaN}', '{"a": NaN}'), ('{"a": 1e999}', '{"a": 1e999}')):
        block = {"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": text}
        body = Messages().whole(Said()) | {"content": [block]}
        answer = LlmAnswer([json.dumps(body).encode()], content_type="application/json")
        found = receive(answer, Messages().asked(PROMPT, stream=False), door=MessagesDoor())
        assert json.loads(found.text)["content"][0]["input"] == shown_as


def test_items_without_numbers_are_told_apart_by_their_ids() -> None:
    """As the server of llama.cpp streams them: what is done comes after all deltas."""
    said = Said(["rice", " and zyqs", "tab"], ["so", "up"], ['{"dish":', ' "rice"}'])
    for text in (said.text, ["rice"]):
        added: list[dict[str, Any]] = [
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [], "encrypted_content": ""},
            {"type": "message", "id": "msg_1", "content": []},
            {"type": "function_call", "call_id": "fc_1", "name": TOOL, "arguments": ""},
        ]
        pieces = {
            "reasoning_text": ("rs_1", said.reasoning),
            "output_text": ("msg_1", text),
            "function_call_arguments": ("fc_1", said.arguments),
        }
        done = [
            added[0] | {"content": [{"type": "reasoning_text", "text": "soup"}]},
            added[1] | {"content": [{"type": "output_text", "text": "".join(text)}]},
            added[2] | {"arguments": "".join(said.arguments)},
        ]
        events: list[Any] = [{"type": "response.created", "response": {"id": "resp_1"}}]
        for item, (kind, (name, deltas)) in zip(added, pieces.items(), strict=True):
            events.append({"type": "response.output_item.added", "item": item})
            events += [{"type": f"response.{kind}.delta", "item_id": name, "delta": each} for each in deltas]
        events += [{"type": "response.output_item.done", "item": item} for item in done]
        events.append({"type": "response.completed", "response": Responses().whole(Said()) | {"output": done}})
        found = receive(LlmAnswer([events_of(events)]), Responses().asked(PROMPT, stream=True), door=ResponsesDoor())
        assert not is_unsafe(found.text)
        output = found.events[-1]["response"]["output"]
        assert output[0]["content"][0]["text"] == "soup"
        if text is said.text:
            assert output[1]["content"][0]["text"] == "rice and"
        else:
            assert [each.get("arguments") for each in output] == [None, None, '{"dish": "rice"}']


def test_a_request_with_many_prompts_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []

    def names(passed: Any, _: Any) -> list[str]:
        read.append(passed)
        return []

    monkeypatch.setattr(request_reader, "_unknown_names", names)
    asked = {"model": "fake", "prompt": ["a", "b", "c"], "x_vendor": {"a": 1}, "suffix": "rice"}
    found = CompletionsDoor().read(asked, ())
    assert [each.messages[0]["content"] for each in found.conversations] == ["a\nrice", "b\nrice", "c\nrice"]
    assert len(read) == 2  # the request, and the first prompt as a message


def test_a_long_suffix_is_not_copied_for_each_of_many_prompts() -> None:
    asked = {"model": "fake", "prompt": ["a"] * 100, "suffix": "rice " * 10_000}
    with pytest.raises(ApiError, match="too long for so many"):
        CompletionsDoor().read(asked, ())
