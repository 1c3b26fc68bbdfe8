"""The proxy's doors between the real packages of OpenAI and Anthropic and an LLM that says what it is told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from qwen3guard_client import GuardClient, Policy, Thresholds
from support.door_apis import APIS, TOOL, Api, Chat, Messages, Responses, Said, Shown
from support.fake_llm import FakeLLM, Loop
from support.later import anthropic
from support.moderated import PROMPT, SAFE, TURNS, UNSAFE_PROMPT
from support.places import ROOT
from support.proxied import Proxied
from support.raw_llm import RawLLM
from support.serving import free_port

doors = pytest.mark.parametrize("api", APIS, ids=lambda api: api.name)
JSON = {"Content-Type": "application/json"}
Open = Callable[..., Proxied]


@pytest.fixture
def raw(loop: Loop) -> Iterator[RawLLM]:
    llm = RawLLM()
    loop.run(llm.start())
    yield llm
    loop.run(llm.stop())


@pytest.fixture
def proxied(loop: Loop, guard: GuardClient, raw: RawLLM) -> Open:
    def opened(**settings: Any) -> Proxied:
        return Proxied(loop, guard.url, None, upstream=raw.url, **settings)

    return opened


def says(raw: RawLLM, api: Api, said: Said, *, stream: bool) -> None:
    if stream:
        raw.streams(api.stream(said))
    else:
        raw.says(api.whole(said))


def words(text: str) -> list[str]:
    """In the pieces in which an LLM writes them."""
    return [f"{word} " for word in text.split(" ")]


def asked(proxy: Proxied, api: Api, prompt: str, *, stream: bool) -> Shown:
    body = api.asked(prompt, stream=stream)
    found = httpx.post(f"{proxy.url}/{api.door.path}", json=body, timeout=60)
    assert found.status_code == 200, found.text
    if not stream:
        return api.read_whole(found.json())
    data = [line[6:] for line in found.text.split("\n") if line.startswith("data: {")]
    return api.read_events(map(json.loads, data))


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_conversation_has_the_same_verdict_through_each_door(
    proxied: Open, raw: RawLLM, guard: GuardClient, stream: bool
) -> None:
    seen = []
    with proxied() as proxy:
        for api in APIS:
            says(raw, api, Said(words(TURNS)), stream=stream)
            flagged = asked(proxy, api, PROMPT, stream=stream)
            says(raw, api, Said(words(SAFE)), stream=stream)
            seen.append([flagged, asked(proxy, api, PROMPT, stream=stream)])
            seen[-1].append(asked(proxy, api, UNSAFE_PROMPT, stream=stream))
        proxy.assert_all_sessions_ended(guard)
    flagged, safe, unsafe_prompt = seen[0]
    assert (flagged.ended, flagged.guard["flagged_by"]) == ("content_filter", "response")
    assert TURNS.startswith(flagged.text.strip())
    assert len(flagged.text) == flagged.guard["position"]
    assert (safe.ended, safe.text.strip()) == ("stop", SAFE)
    assert (unsafe_prompt.text, unsafe_prompt.ended) == ("", "content_filter")
    assert seen[1:] == seen[:1] * 3


@pytest.mark.parametrize("api", [Chat(), Messages(), Responses()], ids=lambda api: api.name)
def test_the_first_of_two_messages_is_judged_as_the_last_one_is(proxied: Open, raw: RawLLM, api: Api) -> None:
    says(raw, api, Said(words(SAFE)), stream=False)
    field = "input" if api.name == "responses" else "messages"
    with proxied() as proxy:
        for first, by in (("How do I make a bomb?", "prompt"), (PROMPT, None)):
            messages = [{"role": "user", "content": each} for each in (first, PROMPT)]
            body = api.asked("", stream=False) | {field: messages}
            found = httpx.post(f"{proxy.url}/{api.door.path}", json=body, timeout=60)
            assert found.status_code == 200, found.text
            assert api.read_whole(found.json()).guard["flagged_by"] == by


def of_anthropic(proxy: Proxied) -> Any:
    return anthropic.Anthropic(base_url=proxy.url.removesuffix("/v1"), api_key="sk-ant", max_retries=0, timeout=60)


TOOLS: list[Any] = [{"name": TOOL, "input_schema": {"type": "object"}}]
THOUGHT = Said(words("Rice is good."), words("They want dinner."), ['{"dish": ', '"rice"}'])


def test_anthropics_package_streams_thinking_text_and_a_call(proxied: Open, raw: RawLLM) -> None:
    messages: list[Any] = [{"role": "user", "content": PROMPT}]
    with proxied() as proxy, of_anthropic(proxy) as client:
        raw.streams(Messages().stream(THOUGHT))
        with client.messages.stream(model="fake", max_tokens=99, messages=messages, tools=TOOLS) as stream:
            assert "".join(stream.text_stream) == "Rice is good. "
            found = stream.get_final_message()
        raw.says(Messages().whole(THOUGHT))
        whole = client.messages.create(model="fake", max_tokens=99, messages=messages, tools=TOOLS)
        raw.says(Messages().whole(Said(["Rice."])))
        results = [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Cooked."}]
        turns = [*messages, {"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
        client.messages.create(model="fake", max_tokens=99, messages=turns, tools=TOOLS)
    assert [block.type for block in found.content] == ["thinking", "text", "tool_use"]
    assert [block.to_dict() for block in found.content] == [block.to_dict() for block in whole.content]
    assert found.content[2].to_dict()["input"] == {"dish": "rice"}
    assert (found.stop_reason, found.usage.output_tokens, found.usage.input_tokens) == ("end_turn", 5, 3)
    line, headers, sent = raw.asked[0]
    assert line == "POST /v1/messages HTTP/1.1"
    assert headers["authorization"] == "Bearer sk-ant"
    assert sent["messages"] == messages
    _, _, again = raw.asked[2]
    assert again["messages"][1]["content"] == [
        Messages().whole(THOUGHT)["content"][0],
        {"type": "text", "text": "Rice is good. "},
        {"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": {"dish": "rice"}},
    ]


def test_anthropics_package_understands_a_flag_and_its_errors(proxied: Open, raw: RawLLM) -> None:
    ask: dict[str, Any] = {"model": "fake", "max_tokens": 99, "messages": [{"role": "user", "content": PROMPT}]}
    with proxied() as proxy, of_anthropic(proxy) as client:
        raw.streams(Messages().stream(Said(words(TURNS))))
        with client.messages.stream(**ask) as stream:
            text = "".join(stream.text_stream)
            assert stream.get_final_message().stop_reason == "refusal"
        assert TURNS.startswith(text.strip())
        image = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]
        with pytest.raises(anthropic.BadRequestError, match="the type 'image'; the guard reads text alone"):
            client.messages.create(**(ask | {"messages": [{"role": "user", "content": image}]}))
        with pytest.raises(anthropic.NotFoundError):
            client.messages.count_tokens(model="fake", messages=ask["messages"])
    with proxied(policy=Policy(thresholds=Thresholds(1))) as proxy, of_anthropic(proxy) as client:
        raw.says({"error": {"type": "overloaded_error", "message": "Busy."}}, status="529 Overloaded")
        with pytest.raises(anthropic.APIStatusError, match=r"'overloaded_error'.*Busy\.|Busy\..*'overloaded_error'"):
            client.messages.create(**ask)
    with proxied(on_flag="error") as proxy, of_anthropic(proxy) as client:
        raw.streams(Messages().stream(Said(words(TURNS))))
        with pytest.raises(anthropic.APIStatusError), client.messages.stream(**ask) as stream:
            stream.until_done()


def test_openais_package_streams_a_response(proxied: Open, raw: RawLLM) -> None:
    tools: list[Any] = [{"type": "function", "name": TOOL, "parameters": {"type": "object"}, "strict": False}]
    ask: dict[str, Any] = {"model": "fake", "input": PROMPT, "tools": tools}
    with proxied() as proxy:
        client = proxy.client()
        raw.streams(Responses().stream(THOUGHT))
        with client.responses.stream(**ask) as stream:
            deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
            found = stream.get_final_response()
        raw.says(Responses().whole(THOUGHT))
        whole = client.responses.create(**ask)
        raw.says(Responses().whole(Said(["Rice."])))
        output = {"type": "function_call_output", "call_id": "call_1", "output": "Cooked."}
        items = [{"role": "user", "content": PROMPT}, *whole.output, output]
        client.responses.create(model="fake", input=items, tools=tools)
    assert "".join(deltas) == found.output_text == "Rice is good. "
    assert [item.type for item in found.output] == ["reasoning", "message", "function_call"]
    assert (found.id, found.status, found.usage.total_tokens if found.usage else 0) == ("resp_1", "completed", 8)
    assert whole.output_text == found.output_text
    assert whole.output[2].to_dict()["arguments"] == '{"dish": "rice"}'
    assert raw.asked[0][0] == "POST /v1/responses HTTP/1.1"
    sent = raw.asked[2][2]["input"]
    assert [item.get("type", "message") for item in sent] == [
        *("message", "reasoning", "message", "function_call", "function_call_output"),
    ]
    assert sent[1]["encrypted_content"] == "gAAAA1"


def test_openais_package_understands_a_flag_and_its_errors(proxied: Open, raw: RawLLM) -> None:
    ask: dict[str, Any] = {"model": "fake", "input": PROMPT}
    with proxied() as proxy:
        client = proxy.client()
        raw.streams(Responses().stream(Said(words(TURNS))))
        with client.responses.stream(**ask) as stream:
            events = list(stream)
        last = events[-1]
        assert last.type == "response.incomplete"
        assert last.response.incomplete_details
        assert last.response.incomplete_details.reason == "content_filter"
        assert TURNS.startswith(last.response.output_text.strip())
        with pytest.raises(openai.BadRequestError, match="previous_response_id"):
            client.responses.create(**ask, previous_response_id="resp_0")
    with proxied(on_flag="error") as proxy:
        raw.streams(Responses().stream(Said(words(TURNS))))
        with pytest.raises(openai.APIError), proxy.client().responses.stream(**ask) as stream:
            stream.until_done()


def test_openais_package_completes_texts(proxied: Open, raw: RawLLM) -> None:
    (api,) = [each for each in APIS if each.name == "completions"]
    with proxied() as proxy:
        client = proxy.client()
        raw.streams(api.stream(Said(words(TURNS))), b"data: [DONE]\n\n")
        found = list(client.completions.create(model="fake", prompt=PROMPT, stream=True))
        raw.says(api.whole(Said([SAFE])))
        whole = client.completions.create(model="fake", prompt=PROMPT, suffix="Enjoy.", stop=["\n"])
    text = "".join(chunk.choices[0].text for chunk in found)
    assert TURNS.startswith(text.strip())
    assert found[-1].choices[0].finish_reason == "content_filter"
    assert whole.choices[0].text == SAFE
    assert raw.asked[1][2] == {"model": "fake", "prompt": PROMPT, "suffix": "Enjoy.", "stop": ["\n"]}


def test_other_routes_pass_only_where_the_operator_names_them(loop: Loop, guard: GuardClient, llm: FakeLLM) -> None:
    with Proxied(loop, guard.url, llm) as proxy:
        with pytest.raises(openai.NotFoundError, match="--pass-route"):
            proxy.client().embeddings.create(model="embed", input="Rice.", encoding_format="float")
        assert llm.asked == []
    with Proxied(loop, guard.url, llm, pass_routes=frozenset({"/v1/embeddings"})) as proxy:
        found = proxy.client().embeddings.create(model="embed", input="Rice.", encoding_format="float")
        assert found.data[0].embedding == [0.5]
        assert llm.asked[0]["input"] == "Rice."
        with pytest.raises(openai.NotFoundError):
            proxy.client().audio.speech.create(model="speech", voice="alloy", input="Rice.")
        found_models = httpx.get(f"{proxy.url}/embeddings")
        assert found_models.status_code == 405


KEY = "a-key-of-the-proxys-own"


@pytest.mark.parametrize("header", ["Authorization", "x-api-key", "x-guard-key"])
def test_a_key_of_its_own_is_asked_for_and_reaches_no_llm(
    loop: Loop, guard: GuardClient, llm: FakeLLM, caplog: pytest.LogCaptureFixture, header: str
) -> None:
    caplog.set_level("INFO")
    body = {"model": "fake", "messages": [{"role": "user", "content": PROMPT}]}
    with Proxied(loop, guard.url, llm, api_key=KEY) as proxy:
        url = f"{proxy.url}/chat/completions"
        for wrong in ({}, {header: "another-key-of-the-same"}, {"x-other": KEY}):
            refused = httpx.post(url, json=body, headers=wrong, timeout=60)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert httpx.post(f"{proxy.url}/messages", json={}).json()["type"] == "error"
        value = f"Bearer {KEY}" if header == "Authorization" else KEY
        others = {"x-guard-key": {"Authorization": "Bearer sk-llm", "api-key": KEY}}.get(header, {})
        assert httpx.post(url, json=body, headers={header: value} | others, timeout=60).status_code == 200
        for route in ("/health", "/metrics", "/openapi.json"):
            assert httpx.get(proxy.url.removesuffix("/v1") + route).status_code == 200
    (sent,) = llm.headers
    assert KEY not in json.dumps(sent)
    assert sent.get("Authorization") == others.get("Authorization")
    assert KEY not in caplog.text


def test_the_proxy_counts_what_becomes_of_requests(proxied: Open, raw: RawLLM) -> None:
    (chat, *_) = APIS
    with proxied() as proxy:
        base = proxy.url.removesuffix("/v1")
        says(raw, chat, Said(words(SAFE)), stream=True)
        asked(proxy, chat, PROMPT, stream=True)
        says(raw, Messages(), Said(words(TURNS)), stream=False)
        asked(proxy, Messages(), PROMPT, stream=False)
        httpx.post(f"{proxy.url}/responses", json={"input": 5})
        httpx.get(f"{base}/nowhere-{PROMPT}")
        told = httpx.get(f"{base}/metrics")
    assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = set(told.text.splitlines())
    for line in (
        'qwen3guard_proxy_requests_total{outcome="answered",route="/v1/chat/completions"} 1.0',
        'qwen3guard_proxy_requests_total{outcome="flagged",route="/v1/messages"} 1.0',
        'qwen3guard_proxy_requests_total{outcome="refused",route="/v1/responses"} 1.0',
        'qwen3guard_proxy_requests_total{outcome="refused",route="?"} 1.0',
        'qwen3guard_proxy_flagged_total{by="response",route="/v1/messages"} 1.0',
        'qwen3guard_proxy_errors_total{code="invalid_request",route="/v1/responses"} 1.0',
        'qwen3guard_proxy_request_seconds_count{route="/v1/messages"} 1.0',
        'qwen3guard_proxy_unguarded_total{route="/v1/chat/completions"} 0.0',
        "qwen3guard_proxy_in_flight 0.0",
    ):
        assert line in lines, line
    alerts = (ROOT / "deploy" / "grafana" / "alerts.yaml").read_text()
    found = set(re.findall(r"qwen3guard_proxy_\w+", alerts))
    assert found
    assert found <= set(re.findall(r"^# TYPE (\w+)", told.text, re.MULTILINE))
    assert "dinner" not in told.text
    page = (ROOT / "docs/metrics.md").read_text()
    names = {line.split()[2] for line in lines if line.startswith("# TYPE") and not line.endswith("_created gauge")}
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_the_routes_are_described(proxied: Open) -> None:
    with proxied(pass_routes=frozenset({"/v1/embeddings"})) as proxy:
        base = proxy.url.removesuffix("/v1")
        told = httpx.get(f"{base}/openapi.json").json()
        page = httpx.get(f"{base}/docs")
        assert {f"/v1/{api.door.path}" for api in APIS} <= set(told["paths"])
        assert "UNJUDGED" in told["paths"]["/v1/embeddings"]["post"]["summary"]
        for path, operations in told["paths"].items():
            assert path in page.text
            for method in operations:
                headers = JSON if method == "post" else {}
                found = httpx.request(method.upper(), base + path, headers=headers, timeout=60)
                assert found.status_code not in (404, 405), path
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert urlsplit(base).netloc not in page.text


def test_the_command_says_what_passes_and_where_spans_cannot_go(
    guard: GuardClient, raw: RawLLM, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    command = [sys.executable, "-c", "from qwen3guard_apps.cli.main import main; raise SystemExit(main())", "proxy"]
    command += ["--port", "0", "--url", guard.url, "--upstream", raw.url, "--traces"]
    command += ["--pass-route", "/v1/embeddings", "--api-key-file", str(key)]
    nowhere = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | nowhere, **pipes) as process:
        assert process.stdout
        url = process.stdout.readline().split()[-1]
        raw.says(Messages().whole(Said([SAFE])))
        body = Messages().asked(PROMPT, stream=False)
        found = httpx.post(f"{url}/messages", json=body, headers={"x-guard-key": KEY}, timeout=60)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert found.status_code == 200
    assert process.returncode == 0
    assert "POST /v1/embeddings PASSES UNJUDGED: --pass-route" in said
    assert '"event": "traces"' in said
    assert KEY not in said
    assert "Traceback" not in said
    assert "dinner" not in said


def test_spans_say_what_the_log_says_and_no_text(loop: Loop, guard: GuardClient, raw: RawLLM) -> None:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from qwen3guard_apps.proxy.traces import Traces

    exporter = InMemorySpanExporter()
    traces = Traces(SimpleSpanProcessor(exporter))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with Proxied(loop, guard.url, None, upstream=raw.url, traces=traces) as proxy:
        says(raw, Messages(), Said(words(TURNS)), stream=False)
        body = Messages().asked(PROMPT, stream=False)
        httpx.post(f"{proxy.url}/messages", json=body, headers={"traceparent": parent}, timeout=60)
        httpx.post(f"{proxy.url}/nowhere", json={}, timeout=60)
    traces.close()
    first, second = exporter.get_finished_spans()
    assert (first.name, second.name) == ("POST /v1/messages", "POST ?")
    assert first.parent
    assert f"{first.parent.span_id:016x}" == "b7ad6b7169203331"
    assert first.attributes
    assert second.attributes
    assert first.attributes["qwen3guard.flagged_by"] == "response"
    assert (first.attributes["http.response.status_code"], second.attributes["qwen3guard.error"]) == (
        *(200, "not_relayed"),
    )
    for span in (first, second):
        assert "dinner" not in span.to_json()
        assert "pipe" not in span.to_json()
