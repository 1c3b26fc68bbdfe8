"""Answers of an LLM that are odd in their form: what is usable of them arrives, and is valid JSON."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from qwen3guard_apps.openai.answer import MOST_CHOICES, ChatAnswer
from qwen3guard_apps.openai.api_error import ApiError
from qwen3guard_apps.openai.choice import ChatChoice
from qwen3guard_apps.openai.logprobs import MOST_APART, OwnLogprobs
from qwen3guard_apps.openai.request import read_request
from qwen3guard_apps.proxy import upstream
from support.raw_llm import chunk, completion, sse
from support.unserved_proxy import LlmAnswer, Received, receive

ASKED = {"model": "fake", "messages": [{"role": "user", "content": "What shall we eat?"}]}
STOP = chunk({}, "stop")


def stream(*pieces: bytes, kind: type[LlmAnswer] = LlmAnswer, **settings: Any) -> Received:
    return receive(kind(pieces), ASKED | {"stream": True}, **settings)


def text(found: Received) -> str:
    assert "error" not in found.text, found.text
    return "".join(choice["delta"].get("content") or "" for event in found.events for choice in event["choices"])


@dataclass(frozen=True)
class Torn(LlmAnswer):
    """Its connection breaks at the end, as one does that ends without its last chunk of HTTP."""

    async def iter_any(self) -> AsyncIterator[bytes]:
        async for piece in super().iter_any():
            yield piece
        raise aiohttp.ClientPayloadError


def test_a_connection_that_breaks_after_the_finish_is_an_end() -> None:
    assert text(stream(sse(chunk({"content": "rice"}), STOP, done=False), kind=Torn)) == "rice"


def test_a_connection_that_breaks_before_the_finish_is_an_error() -> None:
    with pytest.raises(AssertionError, match=r"ClientPayloadError|broke off"):
        text(stream(sse(chunk({"content": "rice"}), done=False), kind=Torn))


@pytest.mark.parametrize("choices", [0, False, 1.5, [5], [[]], [""], [True, None], [{"delta": 5}]], ids=str)
def test_an_event_without_text_is_never_fatal(choices: Any) -> None:
    found = stream(sse(chunk({"content": "rice"}), {"choices": choices}, chunk({"content": " and"}), STOP))
    assert text(found) == "rice and"


@pytest.mark.parametrize("choices", ["rice", {"0": "rice"}, ["rice"], [["rice"]], [{"delta": "rice"}]], ids=str)
def test_a_text_in_an_odd_place_is_an_error(choices: Any) -> None:
    found = stream(sse({"choices": choices}, STOP))
    assert "upstream_unreadable" in found.text
    assert "rice" not in found.text


@pytest.mark.parametrize("cut", range(1, 8))
def test_line_ends_of_two_kinds_are_read_wherever_they_are_cut(cut: int) -> None:
    first = b"data: " + json.dumps(chunk({"content": "rice"})).encode()
    rest = b"\r\n\n\r\n\r\r\n" + sse(chunk({"content": " and"}), STOP)
    assert text(stream(first, *(rest[at : at + 1] for at in range(cut)), rest[cut:])) == "rice and"


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN"])
def test_numbers_that_json_does_not_have_are_not_sent_on(number: str) -> None:
    calls = [{"index": 0, "function": {"name": "cook", "arguments": {"for": "?"}}}]
    written = sse(chunk({"tool_calls": calls}), chunk({}, "stop", stop_reason="?")).replace(b'"?"', number.encode())
    error = json.dumps({"error": {"message": "It failed.", "cost": "?"}}).replace('"?"', number).encode()
    for found in (stream(written), receive(LlmAnswer([error], 500, "application/json"), ASKED)):
        assert "Infinity" not in found.text
        assert "NaN" not in found.text
    assert stream(written).events[0]["choices"][0]["delta"]["tool_calls"] == [
        calls[0] | {"function": {"name": "cook", "arguments": {"for": None}}}
    ]


def test_a_whole_answer_as_a_stream_numbers_its_calls() -> None:
    calls = [{"id": f"call_{n}", "type": "function", "function": {"name": "cook", "arguments": "{}"}} for n in (1, 2)]
    body = json.dumps(completion({"role": "assistant", "content": None, "tool_calls": calls})).encode()
    found = receive(LlmAnswer([body], content_type="application/json"), ASKED | {"stream": True})
    (shown,) = [choice["delta"]["tool_calls"] for event in found.events for choice in event["choices"]]
    assert shown == [each | {"index": number} for number, each in enumerate(calls)]


@pytest.mark.parametrize("reason", ["abort", "error", "insufficient_system_resource", "max_tokens", "model_length"])
def test_an_answer_that_ended_early_does_not_look_complete(reason: str) -> None:
    found = stream(sse(chunk({"content": "rice"}), chunk({}, reason)))
    assert found.events[-1]["choices"][0]["finish_reason"] == reason


@pytest.mark.parametrize("status", [200, 500])
def test_an_error_that_is_flagged_is_told_with_its_mark_or_not_at_all(status: int) -> None:
    for words, flagged in (("It failed.", False), ("zyqstab him", True)):
        for body in ({"error": {"message": words}}, {"error": words}, {"detail": words, "error": {"code": 1}}):
            answer = LlmAnswer([json.dumps(body).encode()], status, "application/json")
            marked = receive(answer, ASKED, on_flag="mark")
            told = json.loads(marked.text)["error"]
            assert told.get("guard", {}).get("flagged", False) is (flagged and words in marked.text)
            for on_flag in ("stop", "error"):
                assert ("zyqs" in receive(answer, ASKED, on_flag=on_flag).text) is False


def test_an_llm_does_not_speak_in_the_headers_of_the_proxy() -> None:
    headers = {"x-guard-removed": "none_1", "x-guard-request-id": "5", "x-request-id": "req_1"}
    found = receive(
        LlmAnswer([json.dumps(completion({"content": "rice"})).encode()], 200, "application/json", headers),
        ASKED | {"documents": ["rice"]},
    )
    assert found.headers["x-guard-removed"] == "documents"
    assert found.headers["x-request-id"] == "req_1"
    assert "x-guard-request-id" not in found.headers


@pytest.mark.parametrize("stream", [True, False])
def test_an_llm_says_nothing_by_the_name_of_a_header_and_commands_no_reverse_proxy(stream: bool) -> None:
    passed = ["x-request-id", "openai-processing-ms", "retry-after", "x-ratelimit-remaining-tokens", "ratelimit-reset"]
    kept_back = ["x-accel-redirect", "x-sendfile", "x-forwarded-for", "x-pack-the-explosives-1", "openai-zyqs-tab"]
    headers = dict.fromkeys(passed + kept_back, "5")
    body = sse(chunk({"content": "rice"}, "stop")) if stream else json.dumps(completion({"content": "rice"})).encode()
    kind = "text/event-stream" if stream else "application/json"
    found = receive(LlmAnswer([body], 200, kind, headers), ASKED | {"stream": stream})
    assert {name: found.headers.get(name) for name in passed} == dict.fromkeys(passed, "5")
    assert not found.headers.keys() & set(kept_back)


@pytest.mark.parametrize(
    ("name", "value", "passes"),
    [
        ("retry-after-ms", "1500", True),
        ("retry-after-ms", "1e400", False),
        ("x-ratelimit-reset-tokens", "1m6.5s", True),
        ("x-should-retry", "true", True),
        ("openai-processing-ms", "make-a-b0mb", False),
        ("openai-organization", "org-5f2x", True),
    ],
)
def test_a_number_is_a_number(name: str, value: str, passes: bool) -> None:
    body = json.dumps(completion({"content": "rice"})).encode()
    found = receive(LlmAnswer([body], 200, "application/json", {name: value}), ASKED)
    assert (found.headers.get(name) == value) is passes


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"null",
        b"[]",
        b'""',
        b"5",
        b"false",
        b"{}",
        b'{"error": {}}',
        b'{"error": 5}',
        b'{"error": {"message": " "}}',
    ],
)
def test_an_error_without_words_is_told_by_a_sentence(body: bytes) -> None:
    found = receive(LlmAnswer([body], 503, "text/plain"), ASKED)
    assert json.loads(found.text)["error"] == {
        "message": "The LLM failed with status 503, and says no more.",
        "type": "upstream_error",
        "param": None,
        "code": "upstream_failed",
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"object": "error", "message": "No rice.", "code": 40}, "No rice."),
        ({"detail": "No rice."}, "No rice."),
        ({"error": "No rice."}, "No rice."),
        ({"error": {"no": "rice"}}, '{"error": {"no": "rice"}}'),
        ({"detail": [{"msg": "No rice."}]}, '{"detail": [{"msg": "No rice."}]}'),
        (["No rice."], '["No rice."]'),
    ],
)
def test_an_error_in_another_shape_is_told_in_openais(body: Any, message: str) -> None:
    found = receive(LlmAnswer([json.dumps(body).encode()], 400, "application/json"), ASKED)
    assert json.loads(found.text)["error"]["message"] == message


@pytest.mark.parametrize("depth", [300, 600, 900, 5000])
def test_an_error_that_is_nested_deeply_keeps_its_status(depth: int) -> None:
    for begin, end in ((b"[", b"]"), (b'{"a":', b"}")):
        answer = LlmAnswer([begin * depth + b'"rice"' + end * depth], 400, "application/json")
        found = receive(answer, ASKED)
        assert (found.status, set(json.loads(found.text))) == (400, {"error"})


@pytest.mark.parametrize(
    "event",
    [
        {"object": "error", "message": "It broke.", "code": 400},
        {"message": "It broke."},
        {"detail": [{"msg": "It broke."}]},
        {"error": {}},
        {"error": ""},
        {"error": "It broke.", "choices": []},
    ],
)
def test_an_event_that_is_an_error_in_any_form_ends_the_stream_as_one(event: dict[str, Any]) -> None:
    found = stream(sse(chunk({"content": "rice "}), event))
    assert found.events[-1]["error"]["code"]
    assert all(choice["finish_reason"] is None for each in found.events[:-1] for choice in each["choices"])


@pytest.mark.parametrize(
    "event", [{"type": "ping"}, {"error": None}, chunk({"content": ""}) | {"error": {}}, [], False]
)
def test_an_event_that_says_nothing_is_none(event: Any) -> None:
    assert text(stream(sse(chunk({"content": "rice "}), event, STOP))) == "rice "


@pytest.mark.parametrize("entry", [0, {}, {"token": 5}, {"token": "a"}, {"token": "rice", "bytes": [0] * 1000}])
def test_log_probabilities_of_another_text_are_read_no_further(entry: Any) -> None:
    class Entries(list[Any]):
        read = 0

        def __iter__(self) -> Any:
            for each in super().__iter__():
                Entries.read += 1
                yield each

    own = OwnLogprobs()
    assert own.take("rice", Entries([entry] * 3 * MOST_APART)) == []
    assert Entries.read < 2 * MOST_APART
    assert own.take("", [{"token": "rice"}]) == []


def test_an_llm_does_not_speak_as_the_guard_in_an_error() -> None:
    said = {"error": {"message": "No rice.", "code": "x1", "guard": {"flagged": True}}, "guard": 1}
    found = receive(LlmAnswer([json.dumps(said).encode()], 400, "application/json"), ASKED)
    assert json.loads(found.text) == {"error": {"message": "No rice.", "code": "x1"}}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"index": 0}] * 129},
        completion({"content": None, "tool_calls": [{"index": 0}] * 50_001}),
        completion({"content": [{"type": "text"}] * 50_001}),
    ],
)
def test_an_answer_of_very_many_values_is_refused_before_it_is_read(stream: bool, answer: dict[str, Any]) -> None:
    asked = ASKED | {"stream": stream}
    found = receive(LlmAnswer([json.dumps(answer).encode()], 200, "application/json"), asked)
    error = (found.events[-1] if stream else json.loads(found.text))["error"]
    assert error["code"] in ("upstream_too_long", "upstream_unreadable")
    assert stream or found.status == 502


def test_the_log_probabilities_of_a_whole_context_are_not_too_many_values() -> None:
    tokens = [{"token": "a", "bytes": [97], "logprob": -1.5, "top_logprobs": [{"token": "b", "logprob": -2.0}] * 20}]
    body = completion({"content": "a" * 3000}) | {}
    body["choices"][0]["logprobs"] = {"content": tokens * 3000}
    found = receive(LlmAnswer([json.dumps(body).encode()], 200, "application/json"), ASKED | {"logprobs": True})
    assert len(json.loads(found.text)["choices"][0]["logprobs"]["content"]) == 3000


@dataclass(frozen=True)
class Watched(LlmAnswer):
    """It counts in `turns` how often others could run."""

    turns: list[int] = field(default_factory=lambda: [0])

    async def iter_any(self) -> AsyncIterator[bytes]:
        async def count() -> None:
            while True:
                self.turns[0] += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        async for piece in super().iter_any():
            yield piece
        counting.cancel()


def test_others_run_between_the_events_of_one_piece() -> None:
    answer = Watched([sse(*[chunk({"content": "rice "})] * 500, STOP)])
    assert text(receive(answer, ASKED | {"stream": True})) == "rice " * 500
    assert answer.turns[0] >= 500


@pytest.mark.parametrize("lines", [b"data:\n\n", b"\n", b"id: 5\n", b"\r"])
def test_others_run_between_the_lines_of_one_piece_that_have_no_event(lines: bytes) -> None:
    answer = Watched([sse(chunk({"content": "rice"}), done=False) + 50_000 * lines + sse(STOP)])
    assert text(receive(answer, ASKED | {"stream": True})) == "rice"
    assert answer.turns[0] >= 500


def test_the_header_of_removed_fields_stays_short() -> None:
    asked = ASKED | {f"field_{number}": "x" for number in range(10_000)}
    assert len(read_request(asked).removed) == 10_000
    found = receive(LlmAnswer([json.dumps(completion({"content": "rice"})).encode()], 200, "application/json"), asked)
    assert found.headers["x-guard-removed"].startswith("field_0, field_1, ")
    assert len(found.headers["x-guard-removed"]) < 5000


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("on_flag", ["stop", "error"])
def test_a_flagged_prompt_counts_more_than_an_error_of_the_llm(stream: bool, on_flag: str) -> None:
    asked = {"model": "fake", "messages": [{"role": "user", "content": "zyqs"}], "stream": stream}
    for answer in (LlmAnswer([b'{"error": {"message": "too long"}}'], 400, "application/json"), LlmAnswer([], 307)):
        found = receive(answer, asked, on_flag=on_flag)
        assert "content_filter" in found.text
        assert "upstream" not in found.text


def test_a_choice_that_finishes_early_holds_up_no_other() -> None:
    """Its last chunk waits for the LLM's end, and the other choice goes on before it."""
    early = [
        chunk({"content": "rice"}, "stop"),
        chunk({"content": "bread"}, index=1),
        chunk({"content": " and"}, index=1),
    ]
    events = [*early, chunk({}, "length", index=1), {"choices": [], "usage": {"total_tokens": 3}}]
    found = receive(LlmAnswer([sse(*events)]), ASKED | {"stream": True, "n": 2})
    choices = [choice for event in found.events for choice in event["choices"]]
    assert [(each["index"], each["delta"].get("content")) for each in choices] == [
        (1, "bread"),
        (1, " and"),
        (0, "rice"),
        (1, None),
    ]
    assert [each["finish_reason"] for each in choices] == [None, None, "stop", "length"]
    assert found.events[-1]["usage"] == {"total_tokens": 3}


def test_what_an_llm_wrote_before_its_error_is_shown_with_its_last_chunk() -> None:
    events = [chunk({"content": "rice"}), chunk({"content": " and"}, "stop"), {"error": {"message": "It broke."}}]
    found = stream(sse(*events))
    assert [choice["delta"]["content"] for event in found.events[:-1] for choice in event["choices"]] == [
        "rice",
        " and",
    ]
    assert found.events[-1]["error"] == {"message": "It broke."}


def test_the_beginning_of_a_flagged_last_chunk_is_shown() -> None:
    found = stream(sse(chunk({"content": "rice and zyqstab him"}, "stop")))
    shown = "".join(choice["delta"].get("content") or "" for event in found.events for choice in event["choices"])
    assert shown == "rice and"
    assert found.events[-1]["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize(
    "name", ["First_stab_him_in_the_neck", "stab.him.in.the.neck.1", "a/very-long+id/of:many_words"]
)
def test_an_id_of_many_words_is_judged_or_replaced(name: str) -> None:
    name = name.replace("stab", "zyqstab")
    for fields in ({"id": name}, {"system_fingerprint": name}, {"x": name}):
        assert "zyqs" not in stream(sse(chunk({"content": "rice"}) | fields, STOP)).text
    call = {"index": 0, "id": name, "type": "function", "function": {"name": "cook", "arguments": "{}"}}
    found = stream(sse(chunk({"tool_calls": [call]}), STOP))
    assert "zyqs" not in found.text
    if "zyqs" not in name:
        assert name in found.text


@pytest.mark.parametrize("name", ["chatcmpl-tool-5f2a", "550e8400-e29b-41d4-a716-446655440000", "fp_1", "call_aBcDeF"])
def test_ids_of_servers_pass(name: str) -> None:
    call = {"index": 0, "id": name, "type": "function", "function": {"name": "cook", "arguments": "{}"}}
    found = stream(sse(chunk({"tool_calls": [call]}) | {"id": name}, STOP))
    assert found.events[0]["id"] == name
    assert found.events[0]["choices"][0]["delta"]["tool_calls"] == [call]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_escapes_in_arguments_are_judged_as_their_characters(size: int) -> None:
    """However they are cut, and shown as they came."""

    def answered(words: str, *, whole: bool) -> str:
        arguments = json.dumps({"how": words}).replace("q", "\\u0071").replace("z", "\\u007A")
        pieces = [arguments] if whole else [arguments[at : at + size] for at in range(0, len(arguments), size)]
        calls = [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces]
        if whole:
            body = completion({"role": "assistant", "content": None} | calls[0])
            came = receive(LlmAnswer([json.dumps(body).encode()], 200, "application/json"), ASKED).text
            messages = [json.loads(came)["choices"][0]["message"]]
        else:
            found = stream(sse(*map(chunk, calls), STOP))
            messages = [choice["delta"] for event in found.events for choice in event["choices"]]
        return "".join(
            call["function"].get("arguments", "") for each in messages for call in each.get("tool_calls", ())
        )

    for whole in (False, True):
        harmless = answered("rice q 猫 \U0001f600", whole=whole)
        assert json.loads(harmless) == {"how": "rice q 猫 \U0001f600"}
        assert "\\u0071" in harmless
        assert "stab" not in answered("rice zyqstab him", whole=whole)


@pytest.mark.parametrize("size", [10, 100_000])
def test_what_is_large_is_read_in_another_thread(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Where it would keep all others waiting."""
    read_by = set()
    read = ChatAnswer.read

    def recording(self: ChatAnswer, *arguments: Any) -> list[ChatChoice]:
        read_by.add(threading.current_thread() is threading.main_thread())
        return read(self, *arguments)

    monkeypatch.setattr(ChatAnswer, "read", recording)
    written = "rice " * (size // 5)
    body = json.dumps(completion({"role": "assistant", "content": written})).encode()
    whole = receive(LlmAnswer([body], content_type="application/json"), ASKED)
    assert json.loads(whole.text)["choices"][0]["message"]["content"] == written
    at_once = LlmAnswer([body], content_type="application/json")
    assert text(receive(at_once, ASKED | {"stream": True})) == written
    assert read_by == {size == 10}
    read_by.clear()
    assert text(stream(sse({**chunk({"content": written}), "x": 0}))) == written
    assert (size == 10) in read_by


def test_so_many_calls_are_no_message() -> None:
    calls = [{"index": number, "id": f"c{number}"} for number in range(MOST_CHOICES + 1)]
    for taken, code in ((calls[:-1], None), (calls, "upstream_unreadable")):
        found = stream(sse(chunk({"tool_calls": taken}), STOP))
        assert found.events[-1].get("error", {}).get("code") == code


def test_log_probabilities_that_nobody_asked_for_count() -> None:
    entries = [{"token": "", "logprob": 0.0}] * 40_000
    body = completion({"role": "assistant", "content": "rice"})
    body["choices"][0]["logprobs"] = {"content": entries}
    answer = LlmAnswer([json.dumps(body).encode()], content_type="application/json")
    assert receive(answer, ASKED).status == 502
    assert receive(answer, ASKED | {"logprobs": True}).status == 200


def test_numbers_without_end_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("json.loads", None)
    with pytest.raises(ApiError, match="more than 100,000 values"):
        upstream.parsed(b"[" + b"1," * (upstream.MOST_COMMAS + 1) + b"1]", with_logprobs=True)


@pytest.mark.parametrize("size", [upstream.LARGEST_ERROR // 2, upstream.LARGEST_ERROR])
def test_an_error_without_end_is_told_without_its_words(size: int) -> None:
    body = json.dumps({"error": {"message": "rice", "x": "y" * size}}).encode()
    found = receive(LlmAnswer([body], 400, "application/json"), ASKED)
    assert found.status == 400
    assert ("rice" in found.text) == (size < upstream.LARGEST_ERROR)


@pytest.mark.parametrize("choices", [[], [{"index": 1, "message": {"role": "assistant", "content": "rice"}}]])
@pytest.mark.parametrize("on_flag", ["stop", "mark"])
def test_a_flag_is_told_though_the_llm_leaves_choices_out(on_flag: str, choices: list[Any]) -> None:
    asked = ASKED | {"messages": [{"role": "user", "content": "zyqstab"}], "n": 2}
    body = json.dumps({"choices": choices}).encode()
    found = json.loads(receive(LlmAnswer([body], content_type="application/json"), asked, on_flag=on_flag).text)
    assert sorted(each["index"] for each in found["choices"]) == [0, 1]
    assert all(each["guard"]["flagged_by"] == "prompt" for each in found["choices"])


def test_a_flagged_prompt_is_a_400_though_the_llm_tells_its_usage() -> None:
    """And though it comes after all that the LLM says."""
    asked = ASKED | {"messages": [{"role": "user", "content": "zyqstab"}], "stream": True}
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}}
    found = receive(LlmAnswer([sse(chunk({"content": "rice"}), STOP, usage)]), asked, on_flag="error", begun=False)
    assert (found.status, "content_filter" in found.text) == (400, True)
