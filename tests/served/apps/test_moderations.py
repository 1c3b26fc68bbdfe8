"""`/v1/moderations` asked by the real openai package, judged by Gen and by Stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from qwen3guard_apps.openai.moderations import MAX_INPUTS
from qwen3guard_client import Category, GuardClient
from qwen3guard_contract.labels import RiskLevel
from qwen3guard_server.server import EmbeddedServer
from support.fake_llm import Loop
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


def test_gen_judges_where_it_is_served(by_gen: openai.OpenAI, guard: GuardClient) -> None:
    found = by_gen.moderations.create(input=[SAFE, UNSAFE])
    assert found.model == "qwen3guard-gen"
    for text, result in zip((SAFE, UNSAFE), found.results, strict=True):
        expected = guard.classify(text)
        unsafe = 1 - expected.severity_probabilities[RiskLevel.SAFE]
        assert result.flagged == expected.strict
        told, scores, more = (extra(part) for part in (result.categories, result.category_scores, result))
        assert {name for name, flagged in told.items() if flagged} == {each.value for each in expected.categories}
        assert set(told) == set(scores) == {each.value for each in Category}
        named = sum(expected.category_probabilities[each] for each in Category)
        for each in Category:
            share = expected.category_probabilities[each] / named
            assert scores[each.value] == pytest.approx(unsafe * share, abs=1e-5)
        assert sum(scores.values()) == pytest.approx(unsafe, abs=1e-5)
        assert more["guard"]["severity"] == expected.severity.value
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
        (["x", "rice " * 100_000], "guard_text_too_long"),
    ],
)
def test_what_cannot_be_judged_is_refused(by_gen: openai.OpenAI, given: object, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        by_gen.moderations.create(input=given)  # type: ignore[arg-type]
    assert caught.value.code == code


@pytest.mark.parametrize("name", ["model", "user"])
def test_a_name_that_is_no_text_is_refused(by_gen: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError, match=f"The field {name} must be a text"):
        by_gen.moderations.create(input=SAFE, extra_body={name: [1]})


def test_without_an_upstream_there_is_nothing_else(by_gen: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        by_gen.chat.completions.create(model="x", messages=[{"role": "user", "content": SAFE}])
