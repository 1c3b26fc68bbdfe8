"""LiteLLM's own proxy server before a fake LLM: its generic guardrail API answered by `qwen3guard proxy`, and the
adapter within its process, on each route, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from qwen3guard_client import GuardClient
from support import litellm_proxy
from support.fake_llm import FakeLLM, Loop
from support.litellm_proxy import GENERIC, IN_PROCESS, NOBODY
from support.moderated import PROMPT, SAFE, TURNS, UNSAFE_PROMPT
from support.proxied import Proxied

HARM = "make a bomb: pack the explosives into a pipe"
"""Of TURNS: what nobody may read."""
ROUTES = ("chat/completions", "messages", "responses")
GUARDRAILS = (GENERIC, IN_PROCESS)
CALL = {
    "index": 0,
    "id": "c1",
    "type": "function",
    "function": {"name": "cook", "arguments": json.dumps({"how": TURNS})},
}
SAFE_CALL = CALL | {"function": {"name": "cook", "arguments": json.dumps({"how": SAFE})}}


class Came(NamedTuple):
    status: int
    text: str
    """All that was written, unescaped."""

    @property
    def failed(self) -> bool:
        told = ("event: error", "event: response.failed", '"error": {')
        return self.status >= 400 or any(each in self.text for each in told)


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with Loop() as running:
        yield running


@pytest.fixture(scope="module")
def served_llm(loop: Loop) -> Iterator[FakeLLM]:
    fake = FakeLLM()
    loop.run(fake.start())
    yield fake
    loop.run(fake.stop())


@pytest.fixture
def llm(served_llm: FakeLLM) -> FakeLLM:
    served_llm.text, served_llm.writes, served_llm.extra, served_llm.asked = SAFE, "content", {}, []
    return served_llm


@pytest.fixture(scope="module")
def litellm_url(
    loop: Loop, guard: GuardClient, served_llm: FakeLLM, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with Proxied(loop, guard.url, None) as proxy, Proxied(loop, guard.url, served_llm) as guarded:
        settings = litellm_proxy.config(served_llm.url, proxy.url.removesuffix("/v1"), guard.url, guarded.url)
        with litellm_proxy.running(tmp_path_factory.mktemp("litellm"), settings) as url:
            yield url


def ask(url: str, route: str, guardrail: str, prompt: Any = PROMPT, **more: Any) -> Came:
    turns = [{"role": "user", "content": prompt}]
    inputs = {"responses": {"input": prompt}, "embeddings": {"input": prompt}}
    named = {"guardrails": [guardrail]} if guardrail else {}
    body = {"model": "chat", **named, **inputs.get(route, {"messages": turns}), **more}
    if route == "messages":
        body["max_tokens"] = 500
    answer = httpx.post(f"{url}/v1/{route}", json=body, timeout=60)
    return Came(answer.status_code, _text(answer.text))


def _text(body: str) -> str:
    """The pieces of a stream's text one after another, then all of it as it came; or a whole answer."""
    pieces = []
    for line in body.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            for choice in event.get("choices") or ():
                delta = choice["delta"]
                calls = [call["function"].get("arguments") or "" for call in delta.get("tool_calls") or ()]
                pieces += [delta.get("reasoning_content") or "", delta.get("content") or "", *calls]
            delta = event.get("delta")
            pieces.append(delta if isinstance(delta, str) else "")
            if isinstance(delta, dict):
                pieces += [str(delta[key]) for key in ("text", "thinking", "partial_json") if key in delta]
    return "".join(pieces) + body


def streams(guardrail: str, route: str) -> bool:
    """The adapter refuses the streams of the other routes."""
    return guardrail == GENERIC or route == "chat/completions"


@pytest.mark.parametrize("guardrail", GUARDRAILS)
@pytest.mark.parametrize("route", ROUTES)
def test_harmless_arrives_and_harm_does_not(litellm_url: str, llm: FakeLLM, route: str, guardrail: str) -> None:
    for stream in (False, True) if streams(guardrail, route) else (False,):
        llm.text, llm.asked = SAFE, []
        safe = ask(litellm_url, route, guardrail, stream=stream)
        assert (safe.failed, SAFE in safe.text) == (False, True), safe
        prompt = ask(litellm_url, route, guardrail, UNSAFE_PROMPT, stream=stream)
        assert prompt.failed
        assert len(llm.asked) == 1
        llm.text = TURNS
        turned = ask(litellm_url, route, guardrail, stream=stream)
        assert turned.failed
        assert HARM not in turned.text
        if not stream:
            assert "Cook" not in turned.text


@pytest.mark.usefixtures("llm")
def test_the_adapter_refuses_streams_that_it_cannot_read(litellm_url: str) -> None:
    for route in ROUTES[1:]:
        came = ask(litellm_url, route, IN_PROCESS, stream=True)
        assert came.failed
        assert "cannot be judged" in came.text
        assert SAFE not in came.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("guardrail", GUARDRAILS)
def test_each_of_several_choices_is_judged(litellm_url: str, llm: FakeLLM, guardrail: str, stream: bool) -> None:
    llm.text = [SAFE, SAFE]
    safe = ask(litellm_url, "chat/completions", guardrail, n=2, stream=stream)
    assert not safe.failed
    llm.text = [SAFE, TURNS]
    came = ask(litellm_url, "chat/completions", guardrail, n=2, stream=stream)
    assert came.failed
    assert HARM not in came.text


@pytest.mark.parametrize("guardrail", GUARDRAILS)
def test_tool_calls_are_judged(litellm_url: str, llm: FakeLLM, guardrail: str) -> None:
    for stream in (False, True):
        llm.text, llm.extra = "", {"tool_calls": [SAFE_CALL]}
        safe = ask(litellm_url, "chat/completions", guardrail, stream=stream)
        assert not safe.failed
        assert "olive oil" in safe.text
        llm.extra = {"tool_calls": [CALL]}
        came = ask(litellm_url, "chat/completions", guardrail, stream=stream)
        assert came.failed
        if not stream or guardrail == IN_PROCESS:  # LiteLLM shows a streamed call before it has it judged
            assert HARM not in came.text


@pytest.mark.parametrize("stream", [False, True])
def test_the_adapter_judges_reasoning(litellm_url: str, llm: FakeLLM, stream: bool) -> None:
    llm.writes, llm.extra = "reasoning_content", {"content": "Fine."}
    safe = ask(litellm_url, "chat/completions", IN_PROCESS, stream=stream)
    assert (safe.failed, SAFE in safe.text, "Fine." in safe.text) == (False, True, True)
    llm.text = TURNS
    came = ask(litellm_url, "chat/completions", IN_PROCESS, stream=stream)
    assert (came.failed, HARM in came.text) == (True, False)
    if not stream:
        assert ask(litellm_url, "messages", IN_PROCESS).failed


def test_what_reasoning_litellm_sends_to_the_generic_guardrail(litellm_url: str, llm: FakeLLM) -> None:
    """Its own limits, as docs/proxy.md tells them: where it sends none and shows it, nobody can judge."""
    llm.text, llm.writes, llm.extra = TURNS, "reasoning_content", {"content": "Fine."}
    shown = {
        (route, stream): HARM in ask(litellm_url, route, GENERIC, stream=stream).text
        for route in ROUTES
        for stream in (False, True)
    }
    unjudged = {("chat/completions", False), ("messages", False), ("messages", True)}
    assert {case for case, is_shown in shown.items() if is_shown} == unjudged


@pytest.mark.parametrize("route", ROUTES)
def test_an_llm_behind_our_proxy_is_guarded_on_every_route(litellm_url: str, llm: FakeLLM, route: str) -> None:
    """Reasoning and streamed calls too, of which LiteLLM does not tell its guardrails in time."""
    for stream in (False, True):
        for writes, extra in (
            ("content", {}),
            ("reasoning_content", {"content": "Fine."}),
            ("reasoning_content", {"tool_calls": [SAFE_CALL]}),
        ):
            llm.writes, llm.extra = writes, extra
            for text in (SAFE, TURNS):
                llm.text = text
                came = ask(litellm_url, route, "", model="guarded", stream=stream)
                assert came.status == 200, came
                assert HARM not in came.text
                if text == SAFE:
                    assert (SAFE if writes == "content" else "olive oil") in came.text
        llm.text, llm.writes, llm.extra = "", "content", {"tool_calls": [CALL]}
        assert HARM not in ask(litellm_url, route, "", model="guarded", stream=stream).text


@pytest.mark.usefixtures("llm")
def test_embeddings(litellm_url: str) -> None:
    def embedded(guardrail: str, given: Any) -> bool:
        return not ask(litellm_url, "embeddings", guardrail, given, model="embed").failed

    assert embedded(GENERIC, PROMPT)
    assert embedded(GENERIC, [PROMPT, SAFE])
    assert embedded(GENERIC, [1, 2, 3])
    assert embedded(GENERIC, "")
    assert not embedded(GENERIC, [PROMPT, UNSAFE_PROMPT])
    assert embedded(IN_PROCESS, [PROMPT, UNSAFE_PROMPT])


@pytest.mark.parametrize("guardrail", GUARDRAILS)
def test_an_image_is_refused_by_its_name(litellm_url: str, llm: FakeLLM, guardrail: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    came = ask(litellm_url, "chat/completions", guardrail, [{"type": "text", "text": PROMPT}, image])
    assert came.failed
    assert "image" in came.text
    assert not llm.asked


def test_a_guard_that_is_gone_blocks(litellm_url: str, llm: FakeLLM) -> None:
    assert ask(litellm_url, "chat/completions", NOBODY).failed
    assert not llm.asked
