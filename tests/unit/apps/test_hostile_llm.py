"""Whatever an LLM or a caller sends: no unsafe word reaches the client, and a harmless stream arrives whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qwen3guard_apps.openai import fields
from qwen3guard_apps.openai.api_error import ApiError
from qwen3guard_apps.openai.request import GuardedRequest, read_request
from qwen3guard_apps.openai.shapes import Anything
from support.lengths import FULL
from support.unserved_proxy import LlmAnswer, Received, receive
from support.word_guard import is_unsafe

MESSAGES = [{"role": "user", "content": "What shall we eat?"}]
HARMLESS = ("rice", " bread", " and", " 5", "\n\n", " naïve", " 猫", " \U0001f600", "!")
HARMFUL = ("zyqs", " zyqstab", "zyqstab him", " xkil", " and xkill all", "ZYQSTAB", "XKil all of them.")
FIELDS = (
    *("id", "object", "created", "model", "system_fingerprint", "service_tier", "usage", "choices", "error"),
    *("index", "finish_reason", "logprobs", "message", "delta", "text", "token_ids", "stop_reason", "guard"),
    *("role", "content", "refusal", "reasoning", "reasoning_content", "tool_calls", "function_call", "audio"),
    *("type", "function", "custom", "name", "arguments", "input", "thinking", "token", "bytes", "top_logprobs"),
    *("prompt_tokens", "prompt_tokens_details", "annotations", "x_vendor", "zyqstab", "xkill all"),
)
KINDS = ("text", "thinking", "refusal", "image_url", "function", "custom", "reasoning_text")


def examples(count: int) -> settings:
    """So many at full length."""
    checks = list(HealthCheck)
    return settings(max_examples=count if FULL else 300, deadline=None, suppress_health_check=checks, database=None)


def texts(words: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), max_size=4).map("".join)


ANY = st.recursive(
    st.one_of(
        texts(HARMFUL + HARMLESS[:3]),
        st.sampled_from([None, True, 0, 1, -1, 2.5, "", "null", "stop", "\ud83d", *KINDS]),
    ),
    lambda deeper: st.one_of(
        st.lists(deeper, max_size=3), st.dictionaries(st.sampled_from(FIELDS), deeper, max_size=4)
    ),
    max_leaves=8,
)


def deltas(words: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Pieces of a message, with text in each place that is judged."""
    text = texts(words)
    parts = st.lists(
        st.one_of(
            st.builds(lambda each: {"type": "text", "text": each}, text),
            st.builds(lambda each: {"type": "thinking", "thinking": [{"type": "text", "text": each}]}, text),
            st.builds(lambda each: {"type": "text", "text": "", "refusal": each} if HARMFUL[0] in each else {}, text),
        ),
        max_size=2,
    )
    arguments = st.one_of(text, st.builds(lambda each: {"dish": [each, 2]}, text))
    call = st.builds(
        lambda value, name: {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": name, "arguments": value},
        },
        arguments,
        st.one_of(st.sampled_from(["cook", "bake"]), text),
    )
    mirrored = st.builds(lambda each: {"reasoning": each, "reasoning_content": each}, text)
    return st.one_of(
        st.builds(lambda each: {"content": each}, st.one_of(text, parts, st.none())),
        st.builds(lambda key, each: {key: each}, st.sampled_from(["reasoning", "reasoning_content", "refusal"]), text),
        st.builds(lambda calls: {"tool_calls": calls}, st.lists(call, min_size=1, max_size=2)),
        st.builds(lambda value: {"function_call": {"name": "cook", "arguments": value}}, arguments),
        mirrored,
    )


def logprobs(delta: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Log-probabilities of the delta's own content, or of any other text, with alternatives."""
    words = texts(HARMLESS + HARMFUL)
    own = delta.get("content")
    token = st.builds(
        lambda text, other: {"token": text, "logprob": -1.0, "top_logprobs": [{"token": other, "logprob": -2.0}]},
        st.one_of(words, st.just(own)) if isinstance(own, str) else words,
        words,
    )
    return st.one_of(st.none(), st.builds(lambda tokens: {"content": tokens}, st.lists(token, max_size=2)))


def choice(delta: Any, reason: Any = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}


def chunk(choices: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "fake", "choices": choices}


def injected(value: Any, data: st.DataObject) -> Any:
    """`value` with something added or replaced somewhere in it."""
    holders = [each for each in _holders(value) if each]
    holder = data.draw(st.sampled_from(holders)) if holders else None
    if isinstance(holder, dict):
        holder[data.draw(st.sampled_from(FIELDS))] = data.draw(ANY)
    elif isinstance(holder, list):
        holder[data.draw(st.integers(0, len(holder) - 1))] = data.draw(ANY)
    return value


def _holders(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(each for inner in value.values() for each in _holders(inner))]
    if isinstance(value, list):
        return [value, *(each for inner in value for each in _holders(inner))]
    return []


def as_bytes(events: list[Any], data: st.DataObject, *, done: bool = True) -> list[bytes]:
    """Server-sent events, with the liberties that the standard and the habits of LLMs leave, cut anywhere."""
    newline = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    between = st.sampled_from(["", "", f": a comment{newline}{newline}", f"event: x{newline}id: 1{newline}"])
    written = [
        f"{data.draw(between)}data: {each if isinstance(each, str) else json.dumps(each)}{newline}{newline}"
        for each in [*events, *(["[DONE]"] if done else [])]
    ]
    raw = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + "".join(written).encode(errors="replace")
    if data.draw(st.booleans()):
        raw = raw.rstrip()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=4)))
    return [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


def assert_hides(found: Received) -> None:
    assert not is_unsafe(found.text), found.text
    assert not is_unsafe(str(found.headers)), found.headers


def asked(data: st.DataObject, *, stream: bool) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": "cook"}}]
    more = {"n": data.draw(st.integers(1, 2)), "logprobs": data.draw(st.booleans()), "tools": tools, "stop": ["end"]}
    return {"model": "fake", "messages": MESSAGES, "stream": stream} | more


@pytest.mark.trial
@examples(100_000)
@given(st.data())
def test_no_unsafe_word_of_a_stream_reaches_the_client(data: st.DataObject) -> None:
    pieces = data.draw(st.lists(deltas(HARMLESS + HARMFUL), max_size=6))
    events: list[Any] = [chunk([choice(each) | {"logprobs": data.draw(logprobs(each))}]) for each in pieces]
    events.append(chunk([choice({}, "stop")]))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(events) - 1))
        events[at] = injected(events[at], data)
    if data.draw(st.booleans()):
        events.insert(data.draw(st.integers(0, len(events))), data.draw(st.one_of(ANY, texts(HARMFUL))))
    answer = LlmAnswer(
        as_bytes(events, data, done=data.draw(st.booleans())),
        data.draw(st.sampled_from([200, 200, 200, 201, 204, 307, 400, 404, 500, 503])),
        data.draw(st.sampled_from(["text/event-stream"] * 3 + ["application/json", "text/html"])),
        {"x-note": data.draw(texts(HARMFUL)), "Location": "http://zyqs"},
    )
    assert_hides(receive(answer, asked(data, stream=True)))


@pytest.mark.trial
@examples(20_000)
@given(st.data())
def test_no_unsafe_word_of_a_whole_answer_reaches_the_client(data: st.DataObject) -> None:
    message = {"role": "assistant"} | data.draw(deltas(HARMLESS + HARMFUL)) | data.draw(deltas(HARMLESS + HARMFUL))
    body: Any = chunk([{"index": 0, "message": message, "finish_reason": "stop"}])
    for _ in range(data.draw(st.integers(0, 4))):
        body = injected(body, data)
    status = data.draw(st.sampled_from([200, 200, 200, 201, 307, 400, 500]))
    answer = LlmAnswer([json.dumps(body).encode()], status, "application/json", {"x-note": data.draw(texts(HARMFUL))})
    assert_hides(receive(answer, asked(data, stream=False)))


NOTHING: tuple[Any, ...] = (
    {"type": "ping"},
    {"id": "1", "choices": None},
    {"choices": []},
    "null",
    "7",
    {"choices": [None]},
)
"""Events without text."""


@pytest.mark.trial
@examples(20_000)
@given(st.data())
def test_a_harmless_stream_arrives_whole(data: st.DataObject) -> None:
    pieces = data.draw(st.lists(deltas(HARMLESS), max_size=6))
    reason = data.draw(st.sampled_from([None, None, "", "null", "stop"]))
    events: list[Any] = [chunk([choice(each, reason) | {"x_vendor": "y"}]) for each in pieces]
    ends = data.draw(st.sampled_from(["stop", "length", "eos"]))
    done = data.draw(st.booleans())
    if not done or not pieces or data.draw(st.booleans()):
        events.append(chunk([choice(data.draw(st.sampled_from([{}, None])), ends)]))
    for _ in range(data.draw(st.integers(0, 3))):
        events.insert(data.draw(st.integers(0, len(events))), data.draw(st.sampled_from(NOTHING)))
    found = receive(LlmAnswer(as_bytes(events, data, done=done)), asked(data, stream=True) | {"n": 1})
    shown = [each for event in found.events for each in event["choices"]]
    assert found.text.endswith("data: [DONE]\n\n")
    assert "error" not in found.text
    assert [each for each in map(_content, shown) if each] == [each for each in map(_text, pieces) if each]
    (last,) = [each for each in shown if each.get("finish_reason")]
    assert last is shown[-1]
    assert last["guard"]["checked"]
    assert not last["guard"]["flagged"]


def _content(choice: dict[str, Any]) -> Any:
    return _text(choice["delta"])


def _text(delta: dict[str, Any]) -> Any:
    """A delta without the fields that say nothing."""
    return {key: value for key, value in delta.items() if value not in (None, "", [], {})}


SENTENCES = ("zyqstab him", " and xkill all of them.")
UNJUDGED = {name for name, shape in fields.REQUEST_FIELDS.items() if isinstance(shape, Anything)}
"""What passes as it is, since no model reads it as a turn: docs/proxy.md names them."""


@pytest.mark.trial
@examples(20_000)
@given(st.data())
def test_what_a_caller_writes_is_judged_or_not_sent(data: st.DataObject) -> None:
    """Whatever fields a request has, a sentence in it is refused, is removed, or is read by the guard."""
    delta = data.draw(deltas(HARMLESS + SENTENCES))
    messages: list[Any] = [{"role": "assistant"} | delta, {"role": "tool", "tool_call_id": "call_1", "content": "5"}]
    request: dict[str, Any] = {"model": "fake", "messages": [*messages, *map(dict, MESSAGES)], "temperature": 0.5}
    for _ in range(data.draw(st.integers(0, 4))):
        holders = [each for each in _holders(request) if each]
        holder = data.draw(st.sampled_from(holders))
        value = data.draw(st.one_of(ANY, texts(SENTENCES), st.builds(lambda key: {key: 1}, st.sampled_from(SENTENCES))))
        if isinstance(holder, dict):
            holder[data.draw(st.sampled_from(FIELDS + SENTENCES))] = value
        else:
            holder[data.draw(st.integers(0, len(holder) - 1))] = value
    passed_fields = data.draw(st.sampled_from([(), ("x_vendor", "text")]))
    if passed_fields:
        request["x_vendor"] = data.draw(texts(SENTENCES))
    read = _read(request, passed_fields)
    if read is None:
        return
    sent = json.dumps({name: value for name, value in read.sent.items() if name not in UNJUDGED}, ensure_ascii=False)
    judged = read.conversation.begun + "".join(message["content"] for message in read.conversation.messages)
    for sentence in SENTENCES:
        assert sentence not in sent or sentence in judged
        assert sentence not in ", ".join(read.removed)


def _read(request: dict[str, Any], passed_fields: tuple[str, ...]) -> GuardedRequest | None:
    """The request as it is read, or None if it is refused."""
    try:
        return read_request(request, passed_fields)
    except ApiError:
        return None
