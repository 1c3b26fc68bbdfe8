"""`qwen3guard proxy` between the real openai package and a fake LLM: what passes, what stops, and what breaks."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from qwen3guard_apps.proxy.server import listening
from qwen3guard_apps.proxy.settings import Settings
from qwen3guard_client import AsyncGuardClient, Category, Classification, GuardClient, Policy, Thresholds
from qwen3guard_client.moderation.cascade import Cascade, Confirm
from qwen3guard_client.moderation.gate import OnFlag
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import errors
from qwen3guard_server.server import EmbeddedServer
from support.fake_llm import FakeLLM, Loop
from support.moderated import PROMPT, SAFE, TURNS, UNSAFE_PROMPT
from support.overflowing import LETTER
from support.proxied import Proxied
from support.serving import free_port, serve, stream_repository, wait_ready
from support.texts import TEXTS

JSON = {"Content-Type": "application/json"}
LETS_ALL_PASS = Policy(thresholds=Thresholds(1))
Open = Callable[..., Proxied]


@pytest.fixture
def proxied(loop: Loop, guard: GuardClient, llm: FakeLLM) -> Open:
    def opened(url: str = guard.url, **settings: Any) -> Proxied:
        return Proxied(loop, url, llm, **settings)

    return opened


@pytest.fixture(scope="module")
def offset(guard: GuardClient) -> int:
    """Where TURNS turns."""
    moderated = guard.moderate([TURNS], PROMPT)
    list(moderated)
    assert moderated.flag
    return moderated.flag.offset


def asked(prompt: str = PROMPT, **more: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": prompt}]} | more


def streamed(client: openai.OpenAI, prompt: str = PROMPT, **more: Any) -> list[Any]:
    return list(client.chat.completions.create(**asked(prompt, stream=True, **more)))


def gather(chunks: list[Any], client: openai.OpenAI) -> None:
    """What comes before the error, too."""
    for chunk in client.chat.completions.create(**asked(stream=True)):
        chunks.append(chunk)


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == index)


def guards(error: openai.APIError) -> dict[str, Any]:
    """What the guard says in it."""
    assert isinstance(error.body, dict)
    return dict(error.body["guard"])


def last(chunks: list[Any], index: int = 0) -> Any:
    """The choice of the chunk that says why it ends."""
    (found,) = [
        choice for chunk in chunks for choice in chunk.choices if choice.index == index and choice.finish_reason
    ]
    return found


def comparable(chunks: list[Any]) -> list[Any]:
    found = [chunk.model_dump() for chunk in chunks]
    for each in found:
        for choice in each["choices"]:
            choice.pop("guard", None)
    return found


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holds()


@pytest.mark.parametrize("release", ["after_check", "before_check"])
def test_what_is_safe_arrives_chunk_by_chunk_as_it_was(proxied: Open, llm: FakeLLM, release: str) -> None:
    """Bytes cut anywhere, many scripts, the usage chunk, and every field of the LLM's."""
    llm.text, llm.tear = " ".join(TEXTS), True
    with (
        proxied(policy=LETS_ALL_PASS, release=release) as proxy,
        openai.OpenAI(base_url=llm.url, api_key="none", max_retries=0) as direct,
    ):
        found = streamed(proxy.client(), stream_options={"include_usage": True})
        undisturbed = streamed(direct, stream_options={"include_usage": True})
    assert text_of(found) == llm.text
    assert comparable(found) == comparable(undisturbed)
    assert found[-1].usage.total_tokens == 8
    assert last(found).finish_reason == "stop"
    assert last(found).model_extra["guard"]["flagged"] is False
    assert llm.asked[0] == asked(stream=True, stream_options={"include_usage": True})


def test_a_flag_stops_the_stream_and_the_llm(proxied: Open, llm: FakeLLM, guard: GuardClient, offset: int) -> None:
    llm.text, llm.token_s = TURNS + " And more." * 200, 0.005
    with proxied() as proxy:
        found = streamed(proxy.client())
        assert text_of(found) == TURNS[:offset]
        assert last(found).finish_reason == "content_filter"
        told = last(found).model_extra["guard"]
        assert told | {"categories": [], "severity": ""} == {
            "checked": True,
            "flagged": True,
            "flagged_by": "response",
            "severity": "",
            "categories": [],
            "strict": True,
            "loose": told["loose"],
            "position": offset,
        }
        assert told["severity"] in ("Unsafe", "Controversial")
        assert len(told["categories"]) == 1
        assert {chunk.id for chunk in found} == {"chatcmpl-fake"}
        eventually(lambda: llm.cancelled == 1)
        proxy.assert_all_sessions_ended(guard)


def test_a_whole_answer_is_cut_where_it_is_flagged(proxied: Open, llm: FakeLLM, offset: int) -> None:
    llm.text = TURNS
    with proxied() as proxy:
        found = proxy.client().chat.completions.create(**asked())
        choice = found.choices[0]
        assert choice.message.content == TURNS[:offset]
        assert choice.finish_reason == "content_filter"
        assert choice.model_extra["guard"]["position"] == offset
        assert (found.id, found.usage.total_tokens) == ("chatcmpl-fake", 8)
        llm.text = SAFE
        choice = proxy.client().chat.completions.create(**asked()).choices[0]
    assert choice.message.content == SAFE
    assert choice.finish_reason == "stop"
    assert choice.model_extra["guard"] | {"strict": False, "loose": False} == {
        "checked": True,
        "flagged": False,
        "flagged_by": None,
        "severity": "Safe",
        "categories": [],
        "strict": False,
        "loose": False,
        "position": None,
    }


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("check", ["while", "before"])
def test_an_unsafe_prompt_cancels_the_llm_or_never_asks_it(
    proxied: Open, llm: FakeLLM, check: str, stream: bool
) -> None:
    llm.start_s = 20.0
    with proxied(prompt_check=check) as proxy:
        began = time.monotonic()
        client = proxy.client()
        if stream:
            found = streamed(client, UNSAFE_PROMPT)
            choice, text = last(found), text_of(found)
        else:
            choice = client.chat.completions.create(**asked(UNSAFE_PROMPT)).choices[0]
            text = choice.message.content
        assert time.monotonic() - began < 15
        eventually(lambda: llm.cancelled == llm.started)
    assert text == ""
    assert choice.finish_reason == "content_filter"
    assert choice.model_extra["guard"]["flagged_by"] == "prompt"
    assert choice.model_extra["guard"]["position"] == 0
    assert llm.started <= (check == "while")


def test_a_prompt_that_is_not_checked_is_sent_on(proxied: Open, llm: FakeLLM) -> None:
    llm.text = SAFE
    with proxied(prompt_check="off", policy=Policy(debounce=1000)) as proxy:
        found = streamed(proxy.client(), UNSAFE_PROMPT)
    assert text_of(found) == SAFE
    assert last(found).finish_reason == "stop"


def test_marking_shows_all_and_tells_from_where(proxied: Open, llm: FakeLLM, offset: int) -> None:
    llm.text = TURNS
    with proxied(on_flag="mark") as proxy:
        found = streamed(proxy.client())
        whole = proxy.client().chat.completions.create(**asked()).choices[0]
    assert text_of(found) == TURNS == whole.message.content
    assert last(found).finish_reason == "stop" == whole.finish_reason
    assert whole.model_extra["guard"] == last(found).model_extra["guard"]
    clear = [chunk for chunk in found if "guard" not in (chunk.choices[0].model_extra or {})]
    assert offset - llm.longest <= len(text_of(clear)) <= offset
    assert TURNS.startswith(text_of(clear))


def test_a_flag_can_be_an_error(proxied: Open, llm: FakeLLM, offset: int) -> None:
    llm.text = TURNS
    shown: list[Any] = []
    with proxied(on_flag="error") as proxy:
        client = proxy.client()
        with pytest.raises(openai.BadRequestError) as whole:
            client.chat.completions.create(**asked())
        with pytest.raises(openai.APIError) as mid:
            gather(shown, client)
        with pytest.raises(openai.BadRequestError) as prompt:
            streamed(client, UNSAFE_PROMPT)
    assert text_of(shown) == TURNS[:offset]
    for error in (whole, mid, prompt):
        assert error.value.code == "content_filter"
        assert guards(error.value)["flagged"]
    assert guards(prompt.value)["flagged_by"] == "prompt"
    assert "bomb" not in str(mid.value)


def test_each_choice_is_judged_by_itself(proxied: Open, llm: FakeLLM, offset: int) -> None:
    llm.text = [SAFE, TURNS]
    with proxied() as proxy:
        found = streamed(proxy.client(), n=2)
        whole = proxy.client().chat.completions.create(**asked(n=2)).choices
    assert [text_of(found, index) for index in (0, 1)] == [SAFE, TURNS[:offset]]
    assert [last(found, index).finish_reason for index in (0, 1)] == ["stop", "content_filter"]
    assert [each.message.content for each in whole] == [SAFE, TURNS[:offset]]
    assert [each.finish_reason for each in whole] == ["stop", "content_filter"]


def test_all_that_can_be_read_is_judged_and_the_rest_is_removed(proxied: Open, llm: FakeLLM) -> None:
    """Reasoning and a tool's arguments are no way around the guard; a sound is not shown."""
    call: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "cook", "arguments": TURNS}}
    calls = {"tool_calls": [{"index": 0} | call]}
    sound = {"audio": {"data": "UklGRg==", "transcript": TURNS}}
    with proxied() as proxy:
        client = proxy.client()
        llm.text, llm.writes = TURNS, "reasoning_content"
        assert last(streamed(client)).finish_reason == "content_filter"
        assert client.chat.completions.create(**asked()).choices[0].finish_reason == "content_filter"
        llm.text, llm.writes, llm.extra = SAFE, "content", calls
        assert last(streamed(client)).finish_reason == "content_filter"
        choice = client.chat.completions.create(**asked()).choices[0]
        assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == (
            "content_filter",
            SAFE,
            None,
        )
        call["function"]["arguments"] = '{"dish": "rice"}'
        assert client.chat.completions.create(**asked()).choices[0].message.tool_calls[0].function.name == "cook"
        assert last(streamed(client)).delta.tool_calls[0].function.arguments == '{"dish": "rice"}'
        llm.extra = sound
        assert client.chat.completions.create(**asked()).choices[0].message.audio is None
        assert "audio" not in (last(streamed(client)).delta.model_extra or {})


@pytest.mark.parametrize("on_flag", ["stop", "mark"])
@pytest.mark.parametrize("confirm", ["strict", "loose"])
def test_gen_confirms_as_in_moderate(
    proxied: Open, llm: FakeLLM, guard: GuardClient, confirm: Confirm, on_flag: OnFlag
) -> None:
    with proxied(confirm=confirm, on_flag=on_flag) as proxy:
        for prompt in (PROMPT, UNSAFE_PROMPT):
            for text in (SAFE, TURNS):
                llm.text = text
                moderated = guard.moderate([text], prompt, confirm=confirm, on_flag=on_flag)
                shown = "".join(str(segment) for segment in moderated)
                choice = proxy.client().chat.completions.create(**asked(prompt)).choices[0]
                assert choice.message.content == shown
                told = choice.model_extra["guard"]
                assert told["position"] == (moderated.flag.offset if moderated.flag else None)
                assert told["flagged"] == (moderated.flag is not None)


def test_what_gen_overrules_is_streamed_to_the_end(
    proxied: Open, llm: FakeLLM, guard: GuardClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gen's answers are turned round, so that none confirms a flag."""

    def overruling(_: Cascade, call: Call[Any]) -> Generator[Call[Any], Classification, bool]:
        yield call
        return False

    monkeypatch.setattr(Cascade, "_ask", overruling)
    llm.text = TURNS
    for release in ("after_check", "before_check"):
        with proxied(confirm="strict", release=release) as proxy:
            found = streamed(proxy.client(), UNSAFE_PROMPT)
            proxy.assert_all_sessions_ended(guard)
        assert text_of(found) == TURNS
        assert last(found).finish_reason == "stop"
        assert last(found).model_extra["guard"]["strict"]


def test_a_gen_that_is_not_served_is_an_error_as_in_moderate(stream_server: EmbeddedServer) -> None:
    """The proxy does not start without it."""

    async def start(url: str) -> None:
        how = Settings(upstream="http://127.0.0.1:9/v1", confirm="strict")
        async with AsyncGuardClient(url) as guard, listening(how, guard, "127.0.0.1", 0):
            pass

    with pytest.raises(errors.GuardNotServed) as at_start:
        asyncio.run(start(stream_server.url))
    with GuardClient(stream_server.url) as guard, pytest.raises(errors.GuardNotServed) as moderated:
        list(guard.moderate([TURNS], PROMPT, confirm="strict"))
    assert str(at_start.value) == str(moderated.value)
    assert "'classify'" in str(at_start.value)


def test_conversations_of_every_kind(proxied: Open, llm: FakeLLM, offset: int) -> None:
    llm.text = SAFE

    def answer(client: openai.OpenAI, *messages: Any) -> Any:
        return client.chat.completions.create(model="fake", messages=list(messages)).choices[0]

    user = {"role": "user", "content": [{"type": "text", "text": PROMPT}]}
    call: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "cook", "arguments": "{}"}}
    with proxied() as proxy:
        client = proxy.client()
        developer = {"role": "developer", "content": "Be brief."}
        assert answer(client, developer, user).finish_reason == "stop"
        called = {"role": "assistant", "content": None, "tool_calls": [call]}
        told = {"role": "tool", "tool_call_id": "1", "content": "Rice."}
        assert answer(client, user, called, told).finish_reason == "stop"
        told["content"] = UNSAFE_PROMPT
        assert answer(client, user, called, told).model_extra["guard"]["flagged_by"] == "prompt"
        llm.text = TURNS[30:]
        begun = answer(client, user, {"role": "assistant", "content": TURNS[:30]})
        assert begun.message.content == TURNS[30:offset]
        assert begun.model_extra["guard"]["position"] == offset - 30
        asked_so_far = llm.started
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        for messages in (
            [{"role": "user", "content": [picture]}],
            [{"role": "guest", "content": "Hello."}],
            [{"role": "user", "content": "  "}],
            [{"role": "user", "content": 5}],
            [],
            [5],
        ):
            body = json.dumps({"model": "fake", "messages": messages})
            refused = httpx.post(f"{proxy.url}/chat/completions", content=body, headers=JSON)
            assert refused.status_code == 400, messages
            assert refused.json()["error"]["type"] == "invalid_request_error"
        assert llm.started == asked_so_far


@pytest.mark.parametrize("status", [401, 429, 500])
@pytest.mark.parametrize("stream", [True, False])
def test_the_llms_errors_are_relayed(proxied: Open, llm: FakeLLM, status: int, stream: bool) -> None:
    llm.status = status
    with proxied() as proxy, pytest.raises(openai.APIStatusError) as caught:
        proxy.client().chat.completions.create(**asked(stream=stream))
    assert caught.value.status_code == status
    assert caught.value.code == "fake_refusal"
    assert caught.value.response.headers["x-request-id"] == "req_1"


def test_an_llm_that_dies_is_an_error_after_what_it_wrote(proxied: Open, llm: FakeLLM, guard: GuardClient) -> None:
    llm.text, llm.dies_after, llm.longest = SAFE, 6, 5
    shown: list[Any] = []
    with proxied() as proxy:
        with pytest.raises(openai.APIError) as caught:
            gather(shown, proxy.client())
        proxy.assert_all_sessions_ended(guard)
    assert caught.value.code == "upstream_failed"
    assert len(text_of(shown)) >= 5
    assert SAFE.startswith(text_of(shown))


def test_an_llm_that_is_not_there_or_does_not_answer(proxied: Open, llm: FakeLLM) -> None:
    for stream in (True, False):
        with proxied(upstream=f"http://127.0.0.1:{free_port()}/v1") as proxy:
            with pytest.raises(openai.APIStatusError) as caught:
                proxy.client().chat.completions.create(**asked(stream=stream))
            assert (caught.value.status_code, caught.value.code) == (502, "upstream_failed")
        llm.start_s = 5.0
        with proxied(upstream_timeout_s=0.2) as proxy:
            with pytest.raises(openai.APIStatusError) as caught:
                proxy.client().chat.completions.create(**asked(stream=stream))
            assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")


@pytest.mark.parametrize("when", ["while the LLM starts", "in the stream"])
def test_a_client_that_leaves_ends_the_llm_and_the_session(
    proxied: Open, llm: FakeLLM, guard: GuardClient, when: str
) -> None:
    llm.text, llm.token_s = SAFE * 50, 0.01
    llm.start_s = 10.0 if when == "while the LLM starts" else 0.0
    with proxied() as proxy:
        body = asked(stream=True)
        with httpx.Client() as client:
            if llm.start_s:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(f"{proxy.url}/chat/completions", json=body, timeout=0.5)
            else:
                with client.stream("POST", f"{proxy.url}/chat/completions", json=body) as response:
                    for line in response.iter_lines():
                        if "Cook" in line:
                            break
        eventually(lambda: llm.cancelled == 1)
        proxy.assert_all_sessions_ended(guard)


def test_a_guard_that_dies_is_answered_as_configured(proxied: Open, llm: FakeLLM, repository: Path) -> None:
    """Killed in the middle of a stream and of a whole answer, and gone before another request."""
    llm.text, llm.token_s, llm.longest = SAFE * 3, 0.1, 5

    def stream(proxy: Proxied) -> tuple[str, Any, str | None]:
        chunks: list[Any] = []
        try:
            gather(chunks, proxy.client())
        except openai.APIError as error:
            return text_of(chunks), None, error.code
        return text_of(chunks), last(chunks), None

    def whole(proxy: Proxied) -> tuple[str, Any, str | None]:
        try:
            choice = proxy.client().chat.completions.create(**asked()).choices[0]
        except openai.APIStatusError as error:
            return "", None, error.code
        return choice.message.content, choice, None

    with serve(repository) as server:
        wait_ready(server)
        settings = {"guard_timeout_s": 3.0}
        with (
            proxied(server.url, on_guard_error="block", **settings) as blocks,
            proxied(server.url, on_guard_error="pass", **settings) as passes,
            ThreadPoolExecutor() as threads,
        ):
            running = [threads.submit(ask, proxy) for proxy in (blocks, passes) for ask in (stream, whole)]
            eventually(lambda: llm.started == 4)
            time.sleep(1.0)
            server.stop(kill=True)
            blocked, blocked_whole, passed, passed_whole = (each.result(60) for each in running)
            for text, _, code in (blocked, blocked_whole):
                assert str(code).startswith("guard_")
                assert llm.text.startswith(text)
                assert text != llm.text
            for text, choice, code in (passed, passed_whole):
                assert (text, code) == (llm.text, None)
                assert choice.model_extra["guard"] == {
                    "checked": False,
                    "flagged": False,
                    "flagged_by": None,
                    "severity": None,
                    "categories": None,
                    "strict": None,
                    "loose": None,
                    "position": None,
                }
            for proxy, status in ((blocks, 503), (passes, 200)):
                again = httpx.post(f"{proxy.url}/chat/completions", json=asked(), timeout=30)
                assert again.status_code == status
                assert ("retry-after" in again.headers) == (status == 503)
                assert httpx.get(f"{proxy.url.removesuffix('/v1')}/health", timeout=30).status_code == 503


def test_a_guard_that_comes_back_goes_on_where_it_was(
    proxied: Open, llm: FakeLLM, repository: Path, tmp_path: Path, offset: int
) -> None:
    """Killed in the middle of a stream and started again: the flag stands where it would have stood."""
    llm.text, llm.token_s, llm.longest = TURNS, 0.1, 5
    with serve(stream_repository(repository, tmp_path)) as server:
        wait_ready(server)
        with proxied(server.url, guard_timeout_s=60.0) as proxy, ThreadPoolExecutor() as threads:
            running = threads.submit(streamed, proxy.client())
            eventually(lambda: llm.started == 1)
            time.sleep(0.5)
            server.restart()
            wait_ready(server)
            found = running.result(60)
    assert text_of(found) == TURNS[:offset]
    assert last(found).model_extra["guard"]["checked"]
    assert last(found).model_extra["guard"]["position"] == offset


def test_a_text_that_is_too_long_never_passes(proxied: Open) -> None:
    with proxied(on_guard_error="pass") as proxy, pytest.raises(openai.BadRequestError) as caught:
        proxy.client().chat.completions.create(**asked("rice " * 40_000))
    assert caught.value.code == "guard_text_too_long"


@pytest.mark.parametrize("on_guard_error", ["block", "pass"])
def test_a_text_for_which_the_guards_numbers_are_not_finite_never_passes(
    proxied: Open, llm: FakeLLM, overflowing_server: EmbeddedServer, on_guard_error: str
) -> None:
    for prompt, answer in ((LETTER, SAFE), (PROMPT, f"Well. {LETTER}")):
        llm.text = answer
        with (
            proxied(overflowing_server.url, on_guard_error=on_guard_error, policy=LETS_ALL_PASS) as proxy,
            pytest.raises(openai.InternalServerError, match="not finite") as caught,
        ):
            proxy.client().chat.completions.create(**asked(prompt))
        assert (caught.value.status_code, caught.value.code) == (503, "guard_internal")


def test_limits_are_answered_in_openais_shape(proxied: Open, llm: FakeLLM) -> None:
    llm.start_s = 2.0
    with proxied(max_in_flight=1, max_body_bytes=2000, max_choices=2) as proxy:
        url = f"{proxy.url}/chat/completions"
        with httpx.Client(timeout=10) as client:
            other = threading.Thread(target=lambda: proxy.client().chat.completions.create(**asked()))
            other.start()
            eventually(lambda: llm.started == 1)
            busy = client.post(url, json=asked())
            assert busy.status_code == 429
            assert busy.headers["retry-after"] == "1"
            other.join()
            assert client.post(url, json=asked("x" * 3000)).status_code == 413
            assert client.post(url, json=asked(n=3)).status_code == 400
            assert client.post(url, content=b"[1", headers=JSON).status_code == 400
            assert client.post(url, content=b'{"temperature": NaN}', headers=JSON).status_code == 400
            assert client.post(f"{proxy.url}/embeddings", json={}).status_code == 404
            assert client.get(url).status_code == 405
            assert client.get(f"{proxy.url}/models/%2e%2e/files").status_code == 404
            for each in (busy, client.post(f"{proxy.url}/embeddings", json={})):
                assert set(each.json()["error"]) == {"message", "type", "param", "code"}
    llm.start_s, llm.text = 0.0, SAFE * 100
    with proxied(max_response_bytes=1000) as proxy:
        with pytest.raises(openai.APIError) as caught:
            streamed(proxy.client())
        assert caught.value.code == "upstream_too_long"


def test_a_flagged_stream_that_was_read_to_its_end_is_logged_as_answered(
    proxied: Open, llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    """The client closes at once, while the LLM's connection is still being closed."""
    llm.text, llm.token_s = TURNS + " And more." * 200, 0.005
    body = json.dumps(asked(stream=True)).encode()
    with caplog.at_level(logging.INFO), proxied() as proxy:
        address = urlsplit(proxy.url)
        for _ in range(5):
            with socket.create_connection((address.hostname, address.port)) as client:
                head = (
                    "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(body)}\r\n\r\n"
                )
                client.sendall(head.encode() + body)
                received = b""
                while b"data: [DONE]" not in received:
                    received += client.recv(65536)
        eventually(lambda: len(caplog.records) == 5)
    assert [json.loads(record.message)["status"] for record in caplog.records] == [200] * 5


def test_keys_reach_the_llm_and_neither_they_nor_texts_the_log(
    proxied: Open, llm: FakeLLM, caplog: pytest.LogCaptureFixture
) -> None:
    llm.text = TURNS
    with caplog.at_level(logging.DEBUG), proxied() as proxy:
        client = proxy.client("sk-very-secret")
        assert [each.id for each in client.models.list()] == ["fake", "qwen3guard-gen"]
        streamed(client, extra_query={"api-version": "hidden-query"})
        with pytest.raises(openai.APIStatusError):
            client.embeddings.create(model="fake", input="hidden text")
    assert llm.headers[0]["Authorization"] == "Bearer sk-very-secret"
    said = [record.message for record in caplog.records if record.name == "qwen3guard.proxy"]
    lines = [json.loads(line) for line in said]
    assert [line["status"] for line in lines] == [200, 200, 404]
    assert lines[1]["flagged_by"] == "response"
    assert re.fullmatch("[0-9a-f]{32}", lines[1]["id"])
    everything = "\n".join(said)
    for hidden in ("secret", "hidden", "rice", "bomb", "embeddings"):
        assert hidden not in everything


@pytest.mark.parametrize("name", ["Range", "If-Range", "If-None-Match", "If-Match", "If-Modified-Since"])
def test_the_llm_is_never_asked_for_a_part_or_for_what_has_changed(proxied: Open, llm: FakeLLM, name: str) -> None:
    """A part would be judged as the whole, and the cache that asks for a change has nothing of the LLM's."""
    llm.text = SAFE
    with proxied() as proxy:
        answer = proxy.client().chat.completions.create(**asked(extra_headers={name: "bytes=0-3", "X-Title": "kept"}))
    assert answer.choices[0].message.content == SAFE
    [sent] = llm.headers
    assert name not in sent
    assert sent["X-Title"] == "kept"


def test_the_async_client_and_many_at_once(proxied: Open, llm: FakeLLM, guard: GuardClient, offset: int) -> None:
    llm.text, llm.token_s = TURNS, 0.002
    with proxied() as proxy:

        async def one(client: openai.AsyncOpenAI) -> str:
            chunks = await client.chat.completions.create(**asked(stream=True))
            return text_of([chunk async for chunk in chunks])

        async def many() -> list[str]:
            async with openai.AsyncOpenAI(base_url=proxy.url, api_key="none", max_retries=0) as client:
                return await asyncio.gather(*(one(client) for _ in range(8)))

        assert asyncio.run(many()) == [TURNS[:offset]] * 8
        proxy.assert_all_sessions_ended(guard)


@pytest.mark.parametrize("limits", [None, Thresholds(1, {Category.VIOLENT: 0.8})])
def test_the_command_guards_and_says_what_it_does(
    guard: GuardClient, llm: FakeLLM, offset: int, limits: Thresholds | None, tmp_path: Path
) -> None:
    llm.text = TURNS
    started = [sys.executable, "-c", "from qwen3guard_apps.cli.main import main; raise SystemExit(main())", "proxy"]
    options = ["--port", "0", "--url", guard.url, "--upstream", llm.url, "--debounce", "2"]
    if limits:
        file = tmp_path / "t.json"
        file.write_text(json.dumps(limits.as_dict()))
        options += ["--thresholds", str(file)]
        moderated = guard.moderate([TURNS], PROMPT, policy=Policy(thresholds=limits))
        list(moderated)
        assert moderated.flag
        assert moderated.flag.offset != offset
        offset = moderated.flag.offset
    with subprocess.Popen([*started, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        ready = process.stdout.readline()
        url = ready.split()[-1]
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            found = streamed(client)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
    assert text_of(found) == TURNS[:offset]
    assert process.returncode == 0
    assert "is blocked (fail closed): --on-guard-error block" in said
    assert '"flagged_by": "response"' in said
    assert "Traceback" not in said


@pytest.mark.parametrize("stream", [True, False])
def test_a_proxy_that_stops_says_so_to_those_that_it_cuts_off(guard: GuardClient, llm: FakeLLM, stream: bool) -> None:
    llm.text, llm.token_s = SAFE * 100, 0.05
    command = [sys.executable, "-c", "from qwen3guard_apps.cli.main import main; raise SystemExit(main())", "proxy"]
    command += ["--port", "0", "--url", guard.url, "--upstream", llm.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().split()[-1]
        with httpx.Client(timeout=60) as client:
            if stream:
                with client.stream("POST", f"{url}/chat/completions", json=asked(stream=True)) as response:
                    lines = response.iter_lines()
                    next(line for line in lines if "Cook" in line)
                    process.send_signal(signal.SIGTERM)
                    told = json.loads([line for line in lines if line][-1].removeprefix("data: "))
            else:
                threading.Timer(1.0, process.send_signal, [signal.SIGTERM]).start()
                response = client.post(f"{url}/chat/completions", json=asked(stream=False))
                told = response.json()
        said = process.communicate(timeout=30)[1]
    assert (response.status_code, told["error"]["code"]) == (200 if stream else 503, "stopping")
    logged = next(json.loads(line) for line in said.splitlines() if '"request"' in line)
    assert (logged["status"], logged["error"]) == (response.status_code, "stopping")
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_proxy_that_looks_for_its_guard_can_be_stopped(number: signal.Signals) -> None:
    command = [sys.executable, "-c", "from qwen3guard_apps.cli.main import main; raise SystemExit(main())", "proxy"]
    command += ["--port", "0", "--url", f"127.0.0.1:{free_port()}", "--timeout", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert "looking for a guard" in process.stderr.readline()
        process.send_signal(number)
        assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 0


def test_the_command_fails_with_a_sentence_where_no_guard_answers() -> None:
    started = [sys.executable, "-c", "from qwen3guard_apps.cli.main import main; raise SystemExit(main())", "proxy"]
    options = [
        "--port",
        "0",
        "--url",
        f"127.0.0.1:{free_port()}",
        "--upstream",
        "http://127.0.0.1:9/v1",
        "--timeout",
        "1",
    ]
    done = subprocess.run([*started, *options], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "looking for a guard at 127.0.0.1:" in done.stderr
    assert "qwen3guard: The server cannot be reached" in done.stderr
