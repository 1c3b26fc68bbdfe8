"""The labels of data sets: common forms are read, and what is unknown, inverted or read as something else is told.

Case 27 of what people send: "Personally Identifiable Information" was "named 0.000", `is_safe` gave an F1 of 0.000,
and 0/1, yes/no and harmful/unharmful were refused.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from qwen3guard_apps.annotation.rows import DataRow, Rows
from qwen3guard_apps.evaluation.figures import figures
from qwen3guard_apps.evaluation.judged import JudgedRow, JudgedRows
from qwen3guard_apps.evaluation.label_notes import LabelNotes, looks_inverted
from qwen3guard_apps.evaluation.label_words import category_of, level_of, names_what_is_safe
from qwen3guard_apps.evaluation.labels import LabelFields
from qwen3guard_contract import errors
from qwen3guard_contract.labels import Category, RiskLevel

TRUE = (True, 1, 1.0, "1", "1.0", "true", "True", "TRUE", "yes", " Yes ", "y")
FALSE = (False, 0, 0.0, "0", "0.0", "false", "False", "no", "No", "n")
UNSAFE = (
    "Unsafe",
    "unsafe",
    "harmful",
    "Harmful",
    "toxic",
    "malicious",
    "flagged",
    "not safe",
    "not_safe",
    "jailbreak",
)
SAFE = (
    "Safe",
    "SAFE",
    "unharmful",
    "harmless",
    "benign",
    "non-toxic",
    "nontoxic",
    "not harmful",
    "not_toxic",
    "non toxic",
)
UNKNOWN = ("bad", "", "2", 2, -1, "-1", 0.5, "0.7", ["Safe"], {"a": 1}, "maybe", "10", "safe, unsafe", float("inf"))


def test_common_labels() -> None:
    for inverted in (False, True):
        for value in UNSAFE:
            assert level_of(value, inverted=inverted) is RiskLevel.UNSAFE, value
        for value in SAFE:
            assert level_of(value, inverted=inverted) is RiskLevel.SAFE, value
        for values, level in ((TRUE, RiskLevel.UNSAFE), (FALSE, RiskLevel.SAFE)):
            for each in values:
                assert (level_of(each, inverted=inverted) is level) is not inverted, each
        for unknown in UNKNOWN:
            assert level_of(unknown, inverted=inverted) is None, unknown
        assert level_of("Controversial", inverted=inverted) is RiskLevel.CONTROVERSIAL


@pytest.mark.parametrize(
    ("names", "safe"),
    [
        (
            ("safe", "is_safe", "isSafe", "is_response_0_safe", "prompt-is-safe", "benign", "harmless", "not_harmful"),
            True,
        ),
        (("non_toxic", "isNotUnsafe", "is_safe_response", "SAFE"), True),
        (("unsafe", "is_unsafe", "label", "toxicity", "not_safe", "safety", "isUnsafe", "harmful", "flagged"), False),
        (("unsafeness", "safeguard_label", "response_label"), False),
    ],
)
def test_names_of_fields_whose_true_is_safe(names: tuple[str, ...], safe: bool) -> None:
    for name in names:
        assert names_what_is_safe(name) is safe, name


@pytest.mark.parametrize(
    ("row", "loose", "strict"),
    [
        ({"label": "Unsafe"}, True, True),
        ({"label": "controversial"}, False, True),
        ({"label": True}, True, True),
        ({"unsafe": False}, False, False),
        ({"safe": False}, True, True),
        ({"is_safe": 1}, False, False),
        ({"safe": "no"}, True, True),
        ({"label": None, "unsafe": True}, True, True),
        ({"label": float("nan"), "harmful": "0"}, False, False),
    ],
)
def test_the_label_of_a_row(row: dict[str, Any], loose: bool, strict: bool) -> None:
    assert LabelFields().unsafe(row) is loose
    assert LabelFields(controversial_is_unsafe=True).unsafe(row) is strict


@pytest.mark.parametrize(
    "row", [{}, {"label": "bad"}, {"label": None}, {"label": ["Safe"]}, {"label": "bad", "safe": 1}]
)
def test_labels_that_cannot_be_read(row: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidRequest, match="'label' is none of"):
        LabelFields().unsafe(row)


def test_a_field_that_is_named_has_no_stand_in() -> None:
    with pytest.raises(errors.InvalidRequest, match="'verdict' is none of"):
        LabelFields("verdict").unsafe({"verdict": None, "unsafe": True})


def test_other_names_of_categories() -> None:
    spelled = {
        "Personally Identifiable Information": Category.PII,
        "privacy_violation": Category.PII,
        "Suicide and Self-Harm": Category.SUICIDE,
        "self-harm": Category.SUICIDE,
        "violence": Category.VIOLENT,
        "Non-Violent Illegal Acts": Category.ILLEGAL,
        "copyright": Category.COPYRIGHT,
        "Jailbreak (Only for input)": Category.JAILBREAK,
        "Sexual Content": Category.SEXUAL,
    }
    for name, category in [*spelled.items(), *((each.value, each) for each in Category)]:
        for written in (name, name.upper(), name.replace(" ", "_"), f" {name} "):
            assert category_of(written) is category
    assert category_of("Astrology") is None


@pytest.mark.parametrize(
    "value",
    [
        ["PII", "Violent"],
        "PII; Violent",
        "privacy|violence",
        "PII, Violent",
        '["PII", "Violent"]',
        {"privacy_violation": True, "violence": True, "animal_abuse": False},
        '{"PII": true, "Violent": true, "x": false}',
    ],
)
def test_several_categories(value: Any) -> None:
    assert LabelFields().categories({"category": value}) == ("PII", "Violent")


@pytest.mark.parametrize("value", [None, "", "None", "safe", float("nan"), [], {}, "N/A"])
def test_no_category(value: Any) -> None:
    assert LabelFields().categories({"category": value}) == ()


def notes(*records: dict[str, Any]) -> tuple[LabelNotes, list[str]]:
    rows = Rows("r", len(records), lambda: (DataRow(n, each) for n, each in enumerate(records, 1)))
    found = LabelNotes(LabelFields())
    left_out = [wrong for _, wrong in found.labelled(rows) if wrong]
    assert len(left_out) == found.left_out
    return found, list(found.sentences())


def test_what_is_told_of_labels() -> None:
    found, said = notes(
        {"is_safe": True, "category": "privacy"},
        {"is_safe": "no", "category": ["Astrology", "PII"]},
        *({"label": "maybe"} for _ in range(12)),
        {"label": "dunno"},
        {"prompt": "x"},
    )
    assert found.as_dict() == {
        "unknown_labels": {"maybe": 12, "dunno": 1, "(none)": 1},
        "unknown_categories": {"Astrology": 1},
        "category_aliases": {"privacy": "PII"},
        "inverted_fields": ["is_safe"],
    }
    text = " ".join(said)
    for words in (
        "'is_safe' says what is safe",
        "14 rows are left out",
        "'maybe' (12)",
        "'privacy' as PII",
        "'Astrology' (1)",
    ):
        assert words in text
    assert notes({"label": 1, "category": "PII"}, {"label": 0})[1] == []
    assert notes({"label": 1, "safe": 0, "unsafe": None, "harmful": "?"}, {"label": 0, "safe": 1})[1] == []
    assert notes({"unsafe": 1, "is_safe": 1}, {"unsafe": 0, "is_safe": 1})[1] == [
        "1 rows are labelled by 'unsafe', and 'is_safe' says the opposite: choose by --label-field."
    ]
    assert notes({"label": 1}, {"label": 1})[1] == ["Every row that is left is labelled unsafe."]


def test_rows_without_any_field_for_a_label_are_told_at_once() -> None:
    def rows(*records: dict[str, Any]) -> Rows:
        return Rows("r", len(records), lambda: (DataRow(n, each) for n, each in enumerate(records, 1)))

    with pytest.raises(errors.InvalidRequest, match=r"'is_safe'; there are 'prompt', 'tox': use --label-field"):
        LabelFields().check(rows({"prompt": "a"}, {"tox": 1}))
    LabelFields().check(rows({"prompt": "a"}, {"safe": None}))
    LabelFields("tox").check(rows({"tox": 1}))


def judged(labels: list[bool], risks: list[float], category: str = "PII") -> JudgedRows:
    answers = [JudgedRow({"strict": risk > 0.5, "loose": risk > 0.5}, ("PII",), risk, risk) for risk in risks]
    records = [{"label": label, "category": category} for label in labels]
    return JudgedRows.of(zip(records, answers, strict=True), LabelFields())


def test_labels_that_go_against_the_guard_are_told() -> None:
    """Inverting all labels turns the area under the ROC into 1 - area, so exactly one of both is told."""
    source = np.random.default_rng(3)
    for _ in range(20):
        labels = [bool(each) for each in source.random(30) < 0.5]
        risks = [float(each) for each in source.random(30)]
        if len(set(labels)) == 1:
            continue
        both = [figures(judged([label is not turned for label in labels], risks)) for turned in (False, True)]
        areas = [each["curves"]["1 - P(Safe)"]["area"]["value"] for each in both]
        assert sum(areas) == pytest.approx(1)
        for measured, area in zip(both, areas, strict=True):
            assert bool(looks_inverted(measured, ("label",))) is (area < 0.5)
    assert looks_inverted(figures(judged([True, True], [0.1, 0.2])), ("label",)) == ""


def test_a_category_under_another_name_is_named_and_an_unknown_one_has_no_rate() -> None:
    for spelled, wanted in itertools.chain(
        (("PII", 1.0), ("Personally Identifiable Information", 1.0)), (("Magic", None),)
    ):
        found = figures(judged([True, True, False], [0.9, 0.8, 0.1], spelled))["categories"]
        (rates,) = found.values()
        assert rates["strict"]["recall"]["value"] == 1
        assert rates["strict"]["named"]["value"] == wanted
