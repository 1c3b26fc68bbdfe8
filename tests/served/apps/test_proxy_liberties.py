"""The proxy before LLMs that take liberties: nothing passes unjudged, and no usable answer is lost."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from qwen3guard_apps.openai.guard_model import listed
from qwen3guard_client import GuardClient
from support.fake_llm import Loop
from support.moderated import PROMPT, SAFE, TURNS
from support.proxied import Proxied
from support.raw_llm import RawLLM, chunk, completion, sse

BAD = TURNS.partition(". ")[2]
JSON = {"Content-Type": "application/json"}
WORDS = ("bomb", "explosives", "nails", "timer", "kill")
LATE = ("timer", "kill")
"""Those that follow the flag, where the text is judged and shown up to it."""


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with Loop() as running:
        yield running


@pytest.fixture(scope="module")
def llm(loop: Loop) -> Iterator[RawLLM]:
    fake = RawLLM()
    loop.run(fake.start())
    yield fake
    loop.run(fake.stop())


@dataclass
class Told:
    """What a client got: the bytes, and, of a stream that ended, its events."""

    status: int
    raw: str
    headers: httpx.Headers
    events: list[Any] = field(default_factory=list)
    done: bool = False

    @property
    def choices(self) -> list[Any]:
        return [choice for event in self.events for choice in event.get("choices", ())]

    @property
    def deltas(self) -> list[Any]:
        return [choice["delta"] for choice in self.choices]

    def text(self, field: str = "content") -> str:
        return "".join(delta.get(field) or "" for delta in self.deltas)

    @property
    def last(self) -> Any:
        """The choice of the only chunk that finishes."""
        (found,) = [choice for choice in self.choices if choice.get("finish_reason")]
        return found

    def assert_whole(self, text: str, field: str = "content") -> None:
        assert (self.status, self.done) == (200, True), self.raw
        assert self.text(field) == text
        assert self.last["guard"]["checked"]
        assert not self.last["guard"]["flagged"]
        assert "error" not in self.raw

    def assert_hides(self, *words: str) -> None:
        assert not [word for word in words or WORDS if word in self.raw.lower() or word in str(self.headers).lower()]


Ask = Callable[..., Told]


@pytest.fixture(scope="module")
def proxy(loop: Loop, guard: GuardClient, llm: RawLLM) -> Iterator[Proxied]:
    with Proxied(loop, guard.url, llm) as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture(scope="module")
def ask(proxy: Proxied) -> Ask:
    def ask(*, stream: bool = True, proxied: Proxied = proxy, **more: Any) -> Told:
        body = {"model": "fake", "messages": [{"role": "user", "content": PROMPT}], "stream": stream} | more
        with httpx.Client(timeout=60) as client:
            return told(client.post(f"{proxied.url}/chat/completions", content=json.dumps(body), headers=JSON))

    return ask


def told(response: httpx.Response) -> Told:
    found = Told(response.status_code, response.text, response.headers)
    if "event-stream" in response.headers["content-type"]:
        data = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
        found.done = data[-1:] == ["[DONE]"]
        found.events = [json.loads(each) for each in data if each != "[DONE]"]
    return found


def pieces(text: str, size: int = 7) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def streamed(text: str, *, key: str = "content", reason: Any = None) -> list[dict[str, Any]]:
    return [chunk({key: piece}, reason) for piece in pieces(text)]


STOP = chunk({}, "stop")

# Unjudged text


@pytest.mark.parametrize(
    "hidden",
    [
        {"text": BAD},
        {"message": {"role": "assistant", "content": BAD}},
        {"token_ids": BAD},
        {"delta": {"content": "", "audio": {"transcript": BAD}, "x_vendor": [{"deep": BAD}]}},
        {"delta": {"role": BAD, "content": ""}},
        {"delta": {"content": "", "annotations": [{"url_citation": {"title": BAD}}]}},
        {"delta": {"content": [{"type": "image_url", "image_url": {"url": BAD}}, {"type": BAD}]}},
        {"delta": {"tool_calls": [{"index": 0, "id": "call_1", "x": BAD, "function": {"arguments": "{}", "y": BAD}}]}},
        {"finish_reason": BAD},
        {"stop_reason": BAD},
        {"logprobs": {"content": [{"token": BAD, "logprob": -1.0}]}},
        {"logprobs": {"content": [], "x": BAD}},
        {"content_filter_results": {"violence": {"severity": BAD}}},
        {BAD: 1},
    ],
    ids=str,
)
def test_a_field_that_no_list_names_is_removed_from_choices(ask: Ask, llm: RawLLM, hidden: dict[str, Any]) -> None:
    odd = {"index": 0, "delta": {}, "finish_reason": None} | hidden
    llm.streams(sse(*streamed(SAFE), {"id": "chatcmpl-1", "choices": [odd]}, STOP))
    found = ask()
    found.assert_hides()
    found.assert_whole(SAFE)
    message = hidden.get("delta", {}) | {"role": "assistant", "content": SAFE}
    others = {name: value for name, value in hidden.items() if name not in ("delta", "message")}
    llm.says(completion(message, **others))
    whole = ask(stream=False)
    whole.assert_hides()
    assert json.loads(whole.raw)["choices"][0]["message"]["content"] == SAFE


@pytest.mark.parametrize(
    "hidden",
    [
        {"x": BAD},
        {"id": BAD},
        {"model": BAD},
        {"object": BAD},
        {"created": BAD},
        {"system_fingerprint": BAD},
        {"service_tier": BAD},
        {"usage": {"prompt_tokens": 1, "prompt_tokens_details": {BAD: 1}, "x": BAD}},
        {"prompt_filter_results": [{"content": BAD}]},
        {BAD: 1},
    ],
    ids=str,
)
def test_a_field_that_no_list_names_is_removed_from_the_top(ask: Ask, llm: RawLLM, hidden: dict[str, Any]) -> None:
    llm.streams(sse(*[each | hidden for each in [*streamed(SAFE), STOP, {"choices": []}]]))
    found = ask()
    found.assert_hides()
    found.assert_whole(SAFE)
    llm.says(completion({"role": "assistant", "content": SAFE}) | hidden)
    whole = ask(stream=False)
    whole.assert_hides()
    assert json.loads(whole.raw)["choices"][0]["message"]["content"] == SAFE


def test_chunks_without_delta_show_nothing(ask: Ask, llm: RawLLM) -> None:
    llm.streams(sse(*({"choices": [{"index": 0, "text": piece}]} for piece in pieces(BAD))))
    ask().assert_hides()


def test_a_field_that_the_operator_lets_through_is_judged(
    loop: Loop, guard: GuardClient, ask: Ask, llm: RawLLM
) -> None:
    with Proxied(loop, guard.url, llm, pass_fields=frozenset({"text", "notes"})) as proxied:  # type: ignore[arg-type]
        for text in (SAFE, BAD):
            llm.streams(sse(*({"choices": [{"index": 0, "text": piece}]} for piece in pieces(text)), STOP))
            found = ask(proxied=proxied)
            shown = "".join(choice.get("text", "") for choice in found.choices)
            assert (shown == text) is (text == SAFE)
            llm.says(completion({"role": "assistant", "content": SAFE, "notes": [{"deep": text}]}))
            message = json.loads(ask(stream=False, proxied=proxied).raw)["choices"][0]["message"]
            assert (message.get("notes") == [{"deep": text}]) is (text == SAFE)
        found = ask(proxied=proxied, notes=BAD)
        assert found.last["guard"]["flagged_by"] == "prompt"


def test_logprobs_go_out_with_their_own_text_alone(ask: Ask, llm: RawLLM) -> None:
    """Before their text, with it, and of another text; the words that the LLM did not write never."""

    def logprobs(text: str) -> dict[str, Any]:
        other = {"token": "bomb", "logprob": -9.0, "bytes": list(b"bomb")}
        own = {"token": text, "logprob": -0.5, "bytes": list(text.encode())}
        return {"content": [own | {"top_logprobs": [own, other]}]}

    first, *rest = pieces(TURNS)
    early = [chunk({}, logprobs=logprobs(first)), chunk({"content": first})]
    llm.streams(sse(*early, *(chunk({"content": each}, logprobs=logprobs(each)) for each in rest), STOP))
    found = ask(logprobs=True, top_logprobs=2)
    shown = [each["token"] for choice in found.choices for each in (choice.get("logprobs") or {}).get("content") or ()]
    assert found.text().startswith("".join(shown))
    assert len(shown) > 5
    assert all(choice["logprobs"] is None for choice in found.choices if not choice["delta"].get("content"))
    found.assert_hides(*LATE)
    llm.streams(sse(*(chunk({"content": each}, logprobs=logprobs(f"{each}!")) for each in pieces(SAFE)), STOP))
    assert 'logprob"' not in ask(logprobs=True).raw


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", ["307 Temporary Redirect", "301 Moved", "304 Not Modified", "204 No Content"])
def test_redirects_never_reach_the_client(ask: Ask, llm: RawLLM, status: str, stream: bool) -> None:
    llm.answers([], status, {"location": "http://elsewhere/v1"})
    found = ask(stream=stream)
    assert found.status == 502
    assert "location" not in found.headers
    assert json.loads(found.raw)["error"]["code"].startswith("upstream_")


@pytest.mark.parametrize("status", ["201 Created", "202 Accepted"])
def test_any_success_is_judged(ask: Ask, llm: RawLLM, status: str) -> None:
    for text in (SAFE, TURNS):
        llm.says(completion({"role": "assistant", "content": text}), status=status)
        found = ask(stream=False)
        found.assert_hides(*LATE)
        assert (found.status, json.loads(found.raw)["choices"][0]["guard"]["flagged"]) == (200, text == TURNS)


@pytest.mark.parametrize("stream", [True, False])
def test_the_llms_errors_are_told_as_far_as_the_guard_clears_them(ask: Ask, llm: RawLLM, stream: bool) -> None:
    for text in (SAFE, BAD):
        for status, body in (("200 OK", {"error": {"message": text}}), ("404 Not Found", {"detail": text})):
            llm.says(body, status=status, **{"x-request-id": "req_1", "set-cookie": "a=1", "x-note": text})
            found = ask(stream=stream)
            assert found.status == (502 if status == "200 OK" else 404)
            found.assert_hides()
            assert (text in found.raw) is (text == SAFE)
            assert "set-cookie" not in found.headers
        llm.answers([text.encode()], "503 Service Unavailable", {"content-type": "text/html"})
        found = ask(stream=stream)
        found.assert_hides()
        assert (found.status, text in found.raw) == (503, text == SAFE)
        assert json.loads(found.raw)["error"]["message"]
    llm.streams(sse(*streamed(SAFE), {"error": {"message": "The model has crashed.", "code": "x1"}}))
    found = ask()
    assert SAFE.startswith(found.text())
    assert found.events[-1]["error"] == {"message": "The model has crashed.", "code": "x1"}


def test_the_models_are_a_list_of_names(proxy: Proxied, llm: RawLLM) -> None:
    llm.says({"object": "list", "data": [{"id": "Qwen/Qwen3-8B", "object": "model", "description": BAD}], "x": BAD})
    found = httpx.get(f"{proxy.url}/models").json()
    assert found == {"object": "list", "data": [{"id": "Qwen/Qwen3-8B", "object": "model"}, listed()]}


@pytest.mark.parametrize(
    ("more", "sent"),
    [
        ({"documents": [{"text": BAD}], "prediction": {"content": BAD}, "chat_template": BAD}, {}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"chat_template_kwargs": {"note": BAD}}, {}),
        ({"temperature": 0.5, "top_k": 3, "min_tokens": 2}, {"temperature": 0.5, "top_k": 3, "min_tokens": 2}),
        (
            {"tools": [{"type": "function"}], "metadata": {"a": "b"}},
            {"tools": [{"type": "function"}], "metadata": {"a": "b"}},
        ),
        ({"input_ids": [9, 8, 7], "stop_token_ids": [5]}, {"stop_token_ids": [5]}),
        ({BAD: 1}, {}),
    ],
    ids=str,
)
def test_what_of_a_request_reaches_the_llm(ask: Ask, llm: RawLLM, more: dict[str, Any], sent: dict[str, Any]) -> None:
    llm.streams(sse(*streamed(SAFE), STOP))
    message = {"role": "user", "content": PROMPT, "x_note": BAD, "prefix": True}
    found = ask(messages=[message], **more)
    found.assert_whole(SAFE)
    _, _, body = llm.asked[-1]
    assert body["messages"] == [{"role": "user", "content": PROMPT, "prefix": True}]
    assert {name: value for name, value in body.items() if name not in ("model", "messages", "stream")} == sent
    told = set(found.headers["x-guard-removed"].split(", "))
    assert told == {"messages.x_note", *(name if name != BAD else "?" for name in more if name not in sent)}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": PROMPT, "name": BAD},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": BAD, "arguments": ""}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}, "text": "harmless"}]},
        {"role": "user", "content": [{"type": "text", "text": PROMPT, "image_url": {"url": "x"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]},
        {"role": "wizard", "content": PROMPT},
    ],
    ids=str,
)
def test_what_the_guard_cannot_read_is_refused_by_name(ask: Ask, llm: RawLLM, message: dict[str, Any]) -> None:
    asked = len(llm.asked)
    found = ask(messages=[message, {"role": "user", "content": PROMPT}])
    assert found.status == 400
    assert "essage 1" in json.loads(found.raw)["error"]["message"]
    assert len(llm.asked) == asked
    found.assert_hides()


# Liberties


USABLE: dict[str, Callable[[str], bytes]] = {
    "no done": lambda text: sse(*streamed(text), STOP, done=False),
    "no blank line at the end": lambda text: sse(*streamed(text), STOP).rstrip(),
    "torn after the finish": lambda text: sse(*streamed(text), STOP, done=False) + b'data: {"id',
    "reasons that say nothing": lambda text: sse(*streamed(text, reason=""), STOP),
    "null as a text": lambda text: sse(*streamed(text, reason="null"), STOP),
    "a reason in every chunk": lambda text: sse(*streamed(text, reason="stop")),
    "an unknown reason": lambda text: sse(*streamed(text), chunk({}, "eos")),
    "no reason at all": lambda text: sse(*streamed(text)),
    "choices that are null": lambda text: sse(*streamed(text), {"id": "1", "choices": None}, STOP),
    "a ping first": lambda text: sse({"type": "ping"}, *streamed(text), STOP),
    "no text": lambda text: sse("null", "5", '"ping"', "[]", {"choices": [None]}, *streamed(text), STOP),
    "a null delta": lambda text: sse(*streamed(text), chunk(None), {"choices": [{"delta": None}]}, STOP),
    "null fields": lambda text: sse(chunk({"content": None, "tool_calls": None}), *streamed(text), STOP),
    "an odd choice": lambda text: sse(*streamed(text), {"choices": [{"index": 3, "delta": {}}]}, STOP),
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + sse(*streamed(text), STOP),
    "carriage returns": lambda text: sse(*streamed(text), STOP).replace(b"\n", b"\r"),
    "comments": lambda text: b": hello\n\nevent: x\nid: 5\nretry: 3\n" + sse(*streamed(text), STOP),
    "nothing after the colon": lambda text: sse(*streamed(text), STOP).replace(b"data: ", b"data:"),
}


@pytest.mark.parametrize("liberty", USABLE)
def test_usable_streams_arrive_whole_and_are_judged(ask: Ask, llm: RawLLM, liberty: str) -> None:
    for text in (SAFE, TURNS):
        data = USABLE[liberty](text)
        llm.streams(*(data[at : at + 11] for at in range(0, len(data), 11)))
        found = ask()
        if text == SAFE:
            found.assert_whole(SAFE)
            assert found.last["finish_reason"] == "stop"
        else:
            found.assert_hides(*LATE)
            assert found.last["finish_reason"] == "content_filter"
            assert TURNS.startswith(found.text())


def test_an_answer_in_one_piece_to_a_request_for_a_stream(ask: Ask, llm: RawLLM) -> None:
    llm.says(completion({"role": "assistant", "content": SAFE}))
    ask().assert_whole(SAFE)
    llm.says(completion({"role": "assistant", "content": TURNS}))
    ask().assert_hides(*LATE)


def test_a_stream_that_breaks_off_is_an_error(ask: Ask, llm: RawLLM) -> None:
    for data in (sse(*streamed(SAFE), done=False), sse(*streamed(SAFE), done=False) + b'data: {"cho', b""):
        llm.streams(data)
        found = ask()
        assert "upstream_" in found.raw
        assert not found.done or found.text() == ""


@pytest.mark.parametrize("stream", [True, False])
def test_surrogate_pairs_that_are_cut_are_joined(ask: Ask, llm: RawLLM, stream: bool) -> None:
    first, second = "\ud83d", "\ude00"
    if stream:
        llm.streams(
            sse(
                chunk({"content": f"Rice {first}"}),
                chunk({"content": f"{second} is good {second}."}),
                chunk({"content": first}, "stop"),
            )
        )
        found = ask()
        found.assert_whole("Rice \U0001f600 is good \ufffd.\ufffd")
    else:
        llm.says(completion({"role": "assistant", "content": f"Rice {first}{second} is {second}good.{first}"}))
        assert (
            json.loads(ask(stream=False).raw)["choices"][0]["message"]["content"]
            == "Rice \U0001f600 is \ufffdgood.\ufffd"
        )
    ask(messages=[{"role": "user", "content": f"Rice? {first}"}])
    assert llm.asked[-1][2]["messages"][0]["content"] == "Rice? \ufffd"


@pytest.mark.parametrize(
    "mirrors",
    [("reasoning", "reasoning_content"), ("content", "reasoning"), ("content", "reasoning_content", "reasoning")],
)
def test_a_text_in_several_fields_is_judged_once(ask: Ask, llm: RawLLM, mirrors: tuple[str, ...]) -> None:
    llm.streams(sse(*(chunk(dict.fromkeys(mirrors, each)) for each in pieces(SAFE)), STOP))
    found = ask()
    for key in mirrors:
        found.assert_whole(SAFE, key)
    llm.streams(sse(*(chunk({"content": each}) for each in pieces(TURNS)), STOP))
    position = ask().last["guard"]["position"]
    llm.streams(sse(*(chunk(dict.fromkeys(mirrors, each)) for each in pieces(TURNS)), STOP))
    found = ask()
    assert found.last["guard"]["position"] == position
    for key in mirrors:
        assert found.text(key) == TURNS[:position]
    llm.says(completion({"role": "assistant"} | dict.fromkeys(mirrors, TURNS)))
    message = json.loads(ask(stream=False).raw)["choices"][0]["message"]
    assert [message[key] for key in mirrors] == [TURNS[:position]] * len(mirrors)


def test_contents_in_parts_and_arguments_as_objects_are_shown_unchanged(ask: Ask, llm: RawLLM) -> None:
    content = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "They want rice."}], "closed": True},
        {"type": "text", "text": SAFE},
    ]
    calls = [
        {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": "cook", "arguments": {"dish": "rice", "for": 2}},
        }
    ]
    history = [
        {"role": "user", "content": PROMPT},
        {
            "role": "assistant",
            "content": content,
            "tool_calls": [{key: value for key, value in calls[0].items() if key != "index"}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
    ]
    tools = [{"type": "function", "function": {"name": "cook"}}]
    llm.streams(sse(chunk({"content": content}), chunk({"tool_calls": calls}), STOP))
    found = ask(messages=history, tools=tools)
    assert [each for each in found.deltas if each] == [{"content": content}, {"tool_calls": calls}]
    assert llm.asked[-1][2]["messages"] == history
    llm.says(completion({"role": "assistant", "content": content, "tool_calls": calls}))
    assert json.loads(ask(stream=False, messages=history).raw)["choices"][0]["message"]["content"] == content
    for hidden in (
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": BAD}]},
                {"type": "text", "text": SAFE},
            ]
        },
        {"tool_calls": [calls[0] | {"function": {"name": "cook", "arguments": {"dish": BAD}}}]},
        {"tool_calls": [calls[0] | {"function": {"name": BAD, "arguments": {}}}]},
        {"tool_calls": [calls[0] | {"id": BAD}]},
        {"function_call": {"name": "cook", "arguments": {"dish": [BAD]}}},
    ):
        llm.streams(sse(chunk(hidden), STOP))
        found = ask(tools=tools)
        found.assert_hides(*LATE)
        assert found.last["guard"]["flagged"]
        llm.says(completion({"role": "assistant"} | hidden))
        ask(stream=False, tools=tools).assert_hides(*LATE)


@pytest.mark.parametrize("comments", [b": wait bomb\n\n", b""], ids=["comments", "silence"])
def test_the_head_comes_when_the_prompt_is_cleared(proxy: Proxied, llm: RawLLM, comments: bytes) -> None:
    """Before the LLM's first word, with a comment of the proxy's own."""
    may_write = threading.Event()
    llm.streams(comments, may_write, sse(*streamed(SAFE), STOP))
    body = {"model": "fake", "messages": [{"role": "user", "content": PROMPT}], "stream": True}
    with (
        httpx.Client(timeout=60) as client,
        client.stream("POST", f"{proxy.url}/chat/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        first = next(lines)
        may_write.set()
        received = [first, *lines]
    assert answer.status_code == 200
    assert first.startswith(":")
    assert "bomb" not in str(received)
    assert "data: [DONE]" in received


def test_headers_and_query_go_as_they_should(proxy: Proxied, llm: RawLLM) -> None:
    llm.streams(sse(*streamed(SAFE), STOP))
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": PROMPT}], "stream": True}).encode()
    url = f"{proxy.url}/chat/completions?a=%23b&c=%2Fd+e"
    with httpx.Client(timeout=60) as client:
        headers = {"content-encoding": "identity", "content-type": "application/json"}
        found = told(client.post(url, content=body, headers=headers))
    found.assert_whole(SAFE)
    line, sent, _ = llm.asked[-1]
    assert line.split()[1] == "/v1/chat/completions?a=%23b&c=%2Fd+e"
    assert "content-encoding" not in sent


def test_an_llm_that_finishes_every_chunk_may_pause(ask: Ask, llm: RawLLM) -> None:
    first, *rest = streamed(SAFE, reason="stop")
    llm.streams(sse(first, done=False), 2.5, sse(*rest))
    ask().assert_whole(SAFE)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_an_answer_that_is_compressed_nevertheless_is_judged(ask: Ask, llm: RawLLM, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    for text in (SAFE, TURNS):
        headers = {"content-type": "text/event-stream", "content-encoding": encoding}
        llm.answers([pack(sse(*streamed(text), STOP))], "200 OK", headers)
        found = ask()
        found.assert_hides(*LATE)
        assert found.last["guard"]["flagged"] is (text == TURNS)


@pytest.mark.parametrize("tools", [b'[{"a": 1e999}]', b'[{"a": NaN}]'], ids=["large", "NaN"])
def test_a_request_that_cannot_be_sent_on_is_the_callers_error(proxy: Proxied, llm: RawLLM, tools: bytes) -> None:
    llm.streams(sse(*streamed(SAFE), STOP))
    asked = {"model": "fake", "messages": [{"role": "user", "content": PROMPT}], "tools": "?"}
    found = httpx.post(
        f"{proxy.url}/chat/completions",
        content=json.dumps(asked).encode().replace(b'"?"', tools),
        headers=JSON,
        timeout=60,
    )
    assert (found.status_code, found.json()["error"]["code"]) == (400, "invalid_request")
