"""From a verdict to the scores and flags of a moderation."""

from __future__ import annotations

import pytest
from qwen3guard_apps.openai.batches import Batches
from qwen3guard_apps.openai.moderations import Moderations, _scores
from qwen3guard_client import Category, Classification, Policy, PromptVerdict, Thresholds
from qwen3guard_contract.labels import AnswerStatus, RiskLevel


def test_the_policy_decides() -> None:
    controversial = {RiskLevel.SAFE: 0.3, RiskLevel.UNSAFE: 0.1, RiskLevel.CONTROVERSIAL: 0.6}
    categories = dict.fromkeys(Category, 0.0) | {Category.VIOLENT: 1.0}

    def flagged(policy: Policy) -> tuple[bool, float]:
        moderations = Moderations(None, policy, Batches(0), gen=True)  # type: ignore[arg-type]
        verdict = PromptVerdict(
            RiskLevel.CONTROVERSIAL, Category.VIOLENT, controversial, categories, strict=True, loose=False, flag=True
        )
        found = moderations._result(verdict, (Category.VIOLENT,))
        assert (found["guard"]["strict"], found["guard"]["loose"]) == (Category.VIOLENT in policy.blocked, False)
        return found["flagged"], found["category_scores"]["Violent"]

    assert flagged(Policy()) == (True, pytest.approx(0.7))
    assert flagged(Policy(strict=False)) == (False, pytest.approx(0.1))
    assert flagged(Policy(blocked=frozenset({Category.PII}))) == (False, pytest.approx(0.7))
    for threshold, expected in ((0.69, True), (0.71, False)):
        assert flagged(Policy(thresholds=Thresholds(1, {Category.VIOLENT: threshold})))[0] == expected


def test_thresholds_flag_what_is_safe_by_its_level() -> None:
    levels = {RiskLevel.SAFE: 0.6, RiskLevel.UNSAFE: 0.3, RiskLevel.CONTROVERSIAL: 0.1}
    categories = dict.fromkeys(Category, 0.01) | {Category.PII: 0.02}
    moderations = Moderations(None, Policy(thresholds=Thresholds(0.3)), Batches(0), gen=True)  # type: ignore[arg-type]
    verdict = PromptVerdict(RiskLevel.SAFE, None, levels, categories, strict=False, loose=False, flag=True)
    found = moderations._result(verdict, ())
    assert found["flagged"]
    assert [name for name, flagged in found["categories"].items() if flagged] == ["PII"]
    assert (found["guard"]["categories"], found["guard"]["strict"]) == ([], False)


@pytest.mark.parametrize(
    ("probabilities", "scores"),
    [
        ({Category.PII: 9e-5, Category.VIOLENT: 1e-5, None: 0.9999}, {"PII": 0.5463, "Violent": 0.0607}),
        ({Category.PII: 1.0, None: 0.0}, {"PII": 0.607, "Violent": 0.0}),
        ({}, {each.value: 0.607 for each in Category}),
        ({None: 1.0}, {each.value: 0.607 for each in Category}),
        (dict.fromkeys(Category, 0.0), {each.value: 0.607 for each in Category}),
    ],
)
def test_the_scores_share_out_what_is_not_safe(
    probabilities: dict[Category | None, float], scores: dict[str, float]
) -> None:
    """Whatever the answer `None` takes; and where no category is likely, each has all of it."""
    found = _scores(0.607, probabilities)
    assert {each.value: found[each] for each in Category if each.value in scores} == pytest.approx(scores)
    assert list(found) == list(Category)


def test_an_answer_that_broke_off_is_as_unsafe_as_its_level() -> None:
    levels = {RiskLevel.SAFE: 0.25, RiskLevel.UNSAFE: 0.75, RiskLevel.CONTROVERSIAL: 0.0}
    broken = Classification(
        RiskLevel.UNSAFE, (), None, levels, {}, {}, strict=True, loose=True, unsafe=True, answer="Safety: Unsafe",
        answer_status=AnswerStatus.CUT, notice="",
    )  # fmt: skip
    for policy in (
        Policy(),
        Policy(strict=False),
        Policy(thresholds=Thresholds(0.7)),
        Policy(blocked=frozenset({Category.PII})),
    ):
        moderations = Moderations(None, policy, Batches(0), gen=True)  # type: ignore[arg-type]
        found = moderations._result(broken, ())
        assert found["flagged"]
        own = {each.value for each in Category}
        assert {name for name, flagged in found["categories"].items() if flagged and name in own} == {
            each.value for each in policy.blocked
        }
        assert set(found["category_scores"].values()) == {0.75}
        assert (found["guard"]["strict"], found["guard"]["loose"]) == (True, True)
