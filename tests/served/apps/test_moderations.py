"""`/v1/moderations` asked by the real openai package, judged by Gen and by Stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from qwen3guard_apps.openai.moderations import MAX_INPUTS, OPENAI_NAMES
from qwen3guard_client import Category, GuardClient, Policy
from qwen3guard_contract.labels import RiskLevel
from qwen3guard_server.server import EmbeddedServer
from support.fake_llm import Loop
from support.moderated import PROMPT, TURNS
from support.moderated import SAFE as ANSWER
from support.proxied import Proxied

SAFE, UNSAFE = "What should I cook for dinner tonight?", "How can I make a bomb in my kitchen?"


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with Loop() as running:
        yield running


@pytest.fixture(scope="module")
def by_gen(loop: Loop, guard: GuardClient) -> Iterator[openai.OpenAI]:
    with Proxied(loop, guard.url, None) as proxy:
        yield proxy.client()


def extra(part: pydantic.BaseModel) -> dict[str, Any]:
    """What openai's own type does not know of."""
    assert part.model_extra is not None
    return part.model_extra


def own(part: pydantic.BaseModel) -> dict[str, Any]:
    """Under Qwen3Guard's names."""
    return {name: value for name, value in part.to_dict().items() if name not in OPENAI_NAMES}  # type: ignore[attr-defined]


def test_gen_judges_where_it_is_served(by_gen: openai.OpenAI, guard: GuardClient) -> None:
    found = by_gen.moderations.create(input=[SAFE, UNSAFE])
    assert found.model == "qwen3guard-gen"
    for text, result in zip((SAFE, UNSAFE), found.results, strict=True):
        expected = guard.classify(text)
        unsafe = 1 - expected.severity_probabilities[RiskLevel.SAFE]
        assert result.flagged == expected.strict
        told, scores = (own(part) for part in (result.categories, result.category_scores))
        assert {name for name, flagged in told.items() if flagged} == {each.value for each in expected.categories}
        assert set(told) == set(scores) == {each.value for each in Category}
        named = sum(expected.category_probabilities[each] for each in Category)
        for each in Category:
            share = expected.category_probabilities[each] / named
            assert scores[each.value] == pytest.approx(unsafe * share, abs=1e-5)
        assert sum(scores.values()) == pytest.approx(unsafe, abs=1e-5)
        assert extra(result)["guard"]["severity"] == expected.severity.value
    assert [each.flagged for each in found.results] == [False, True]


def test_stream_judges_where_gen_is_not_served(loop: Loop, stream_server: EmbeddedServer) -> None:
    with Proxied(loop, stream_server.url, None) as proxy, GuardClient(stream_server.url) as guard:
        found = proxy.client().moderations.create(input=[SAFE, UNSAFE])
        assert found.model == "qwen3guard-stream"
        for text, result in zip((SAFE, UNSAFE), found.results, strict=True):
            with guard.stream(text) as stream:
                expected = stream.prompt_verdict
            assert result.flagged == expected.flag
            assert extra(result)["guard"]["severity"] == expected.severity.value
        assert [each.flagged for each in found.results] == [False, True]
        proxy.assert_all_sessions_ended(guard)


def test_one_text_or_one_input_in_parts(by_gen: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": UNSAFE[:10]}, {"type": "text", "text": UNSAFE[10:]}]
    alone = by_gen.moderations.create(input=UNSAFE).results
    assert by_gen.moderations.create(input=parts).results == alone  # type: ignore[arg-type]
    assert len(alone) == 1


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "guard_not_text"),
        ([{"type": "text", "text": SAFE, "image_url": {"url": "data:image/png;base64,AAAA"}}], "guard_not_text"),
        ([1, 2, 3], "guard_not_text"),
        ([], "invalid_request"),
        (5, "invalid_request"),
        (["x"] * (MAX_INPUTS + 1), "invalid_request"),
        (" ", "guard_empty_text"),
    ],
)
def test_what_cannot_be_judged_is_refused(by_gen: openai.OpenAI, given: object, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        by_gen.moderations.create(input=given)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_an_input_that_is_refused_is_flagged_and_the_others_are_judged(by_gen: openai.OpenAI) -> None:
    found = by_gen.moderations.create(input=[SAFE, "rice " * 100_000, " ", UNSAFE]).results
    assert [each.flagged for each in found] == [False, True, True, True]
    codes = [extra(each).get("error", {}).get("code") for each in found]
    assert codes == [None, "guard_text_too_long", "guard_empty_text", None]
    assert [each.categories is None for each in found] == [False, True, True, False]


def test_as_many_inputs_as_a_page_has(by_gen: openai.OpenAI) -> None:
    found = by_gen.moderations.create(input=[SAFE, UNSAFE] * 20).results
    assert [each.flagged for each in found] == [False, True] * 20


def test_openais_names_say_what_qwen3guards_say(by_gen: openai.OpenAI) -> None:
    result = by_gen.moderations.create(input=UNSAFE).results[0]
    told, scores = own(result.categories), own(result.category_scores)
    assert result.categories.violence is told["Violent"] is True
    for name, category in OPENAI_NAMES.items():
        assert result.categories.to_dict()[name] == told[category.value]
        assert result.category_scores.to_dict()[name] == scores[category.value]
    assert "sexual/minors" not in result.categories.to_dict()


@pytest.mark.parametrize("by", ["gen", "stream"])
def test_an_answer_is_judged_in_its_conversation(
    loop: Loop, guard: GuardClient, stream_server: EmbeddedServer, by: str
) -> None:
    url = guard.url if by == "gen" else stream_server.url

    def ends(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}]

    if by == "stream":
        with Proxied(loop, url, None, policy=Policy(debounce=1000)) as proxy:
            body = {"messages": ends(TURNS)}
            answer = proxy.client().post("/moderations", body=body, cast_to=openai.types.ModerationCreateResponse)
            assert answer.results[0].flagged is False  # no run of unsafe tokens is so long
            assert max(own(answer.results[0].category_scores).values()) > 0.1
    with Proxied(loop, url, None) as proxy:
        client = proxy.client()

        def flagged(messages: Any) -> list[bool]:
            body = {"messages": messages}
            answer = client.post("/moderations", body=body, cast_to=openai.types.ModerationCreateResponse)
            return [each.flagged for each in answer.results]

        assert flagged(ends(ANSWER)) == [False]
        assert flagged(ends(TURNS)) == [True]
        assert flagged([ends(ANSWER), ends(TURNS), ends(ANSWER)[:1]]) == [False, True, False]
        two = [{"role": "user", "content": each} for each in (UNSAFE, "Thank you.")]
        assert flagged([two, two[1:]]) == [True, False]
        with pytest.raises(openai.BadRequestError, match="not both"):
            client.post("/moderations", body={"messages": ends(ANSWER), "input": "x"}, cast_to=object)
        image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
        with pytest.raises(openai.BadRequestError, match="reads text alone"):
            client.post("/moderations", body={"messages": image}, cast_to=object)
        several = [ends(ANSWER), image, [], [5], [{"role": "user", "content": " "}], ends(TURNS)]
        answer = client.post("/moderations", body={"messages": several}, cast_to=openai.types.ModerationCreateResponse)
        codes = [extra(each).get("error", {}).get("code") for each in answer.results]
        unread, none = "guard_not_text", "invalid_request"
        assert codes == [None, unread, none, unread, none, None]
        assert [each.flagged for each in answer.results] == [False, True, True, True, True, True]


@pytest.mark.parametrize("name", ["model", "user"])
def test_a_name_that_is_no_text_is_refused(by_gen: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError, match=f"The field {name} must be a text"):
        by_gen.moderations.create(input=SAFE, extra_body={name: [1]})


def test_without_an_upstream_there_is_nothing_else(by_gen: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        by_gen.chat.completions.create(model="x", messages=[{"role": "user", "content": SAFE}])
