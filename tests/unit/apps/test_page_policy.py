"""What the playground's page asks for is read whole, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from qwen3guard_apps.playground.page_policy import page_policy
from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.labels import Category
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.thresholds import Thresholds

ASKED: dict[str, Any] = {"strict": True, "debounce": 2, "blocked": None, "thresholds": None}


def test_a_policy_is_read() -> None:
    assert page_policy(None) is None
    assert page_policy(ASKED) == Policy()
    some = {
        "strict": False,
        "debounce": 3,
        "blocked": ["PII"],
        "thresholds": {"default": 1, "categories": {"PII": 0.5}},
    }
    thresholds = Thresholds(1, {Category.PII: 0.5})
    assert page_policy(some) == Policy(False, 3, frozenset({Category.PII}), thresholds)


@pytest.mark.parametrize(
    "wrong",
    [
        {"strict": None},
        {"strict": 1},
        {"debounce": None},
        {"debounce": 2.5},
        {"debounce": 0},
        {"debounce": True},
        {"blocked": []},
        {"blocked": "PII"},
        {"blocked": ["pii"]},
        {"blocked": [None]},
        {"blocked": [["PII"]]},
        {"thresholds": {}},
        {"thresholds": {"default": None, "categories": {}}},
        {"thresholds": {"default": float("nan"), "categories": {}}},
        {"thresholds": {"default": 0.5, "categories": {"pii": 0.5}}},
        {"thresholds": [0.5]},
        {"mode": "strict"},
    ],
    ids=repr,
)
def test_what_is_no_policy_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        page_policy(ASKED | wrong)


@pytest.mark.parametrize("name", ASKED)
def test_no_part_may_be_missing(name: str) -> None:
    with pytest.raises(InvalidRequest):
        page_policy({key: value for key, value in ASKED.items() if key != name})
