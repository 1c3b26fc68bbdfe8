"""evaluate: every measure against hand-made tables, brute force and upstream's published counts, and a whole run."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
from qwen3guard_apps.evaluation import curves
from qwen3guard_apps.evaluation.figures import bounds, figures, half, propose
from qwen3guard_apps.evaluation.hits import Span, hits
from qwen3guard_apps.evaluation.intervals import bootstrap, f1_interval, wilson
from qwen3guard_apps.evaluation.judged import JudgedRow, JudgedRows, debounced, first_flag, gen_answer, stream_answer
from qwen3guard_apps.evaluation.labels import LabelFields, span
from qwen3guard_apps.evaluation.metrics import Confusion
from qwen3guard_client import Category, RiskLevel, Thresholds, TokenVerdict
from qwen3guard_contract import errors
from qwen3guard_contract.labels import RISK_ORDER
from qwen3guard_contract.policy import DEFAULT_DEBOUNCE, runs

LETTERS = {"S": RiskLevel.SAFE, "U": RiskLevel.UNSAFE, "C": RiskLevel.CONTROVERSIAL}


def flags(text: str) -> Any:
    return np.array([letter == "1" for letter in text])


def test_a_confusion_by_hand() -> None:
    found = Confusion.of(flags("1110000000"), flags("1101100000"))
    assert (found.tp, found.fp, found.fn, found.tn) == (2, 2, 1, 5)
    assert (found.precision, found.recall, found.false_positive_rate) == (2 / 4, 2 / 3, 2 / 7)
    assert found.f1 == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))


def test_rates_of_nothing_are_none() -> None:
    none_unsafe = Confusion(0, 0, 0, 4)
    assert (none_unsafe.precision, none_unsafe.recall, none_unsafe.f1) == (None, None, None)
    assert none_unsafe.false_positive_rate == 0
    assert Confusion(0, 0, 3, 0).f1 == 0
    assert Confusion(3, 0, 0, 0).false_positive_rate is None
    assert Confusion(0, 0, 0, 4).as_dict()["f1"] == {"value": None, "interval": None}


def test_wilsons_interval_is_where_the_score_test_turns() -> None:
    """The interval's ends p solve |k/n - p| = z sqrt(p (1 - p) / n)."""
    for part, whole in ((0, 10), (3, 10), (10, 10), (699, 813)):
        interval = wilson(part, whole)
        assert interval is not None
        for end in interval:
            if 1e-9 < end < 1 - 1e-9:
                assert abs(part / whole - end) == pytest.approx(1.959963985 * math.sqrt(end * (1 - end) / whole))
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 0) is None


def test_f1s_interval_is_that_of_resampled_rows() -> None:
    counts = (30, 10, 20, 40)
    unsafe = np.repeat([True, False, True, False], counts)
    flagged = np.repeat([True, True, False, False], counts)
    source = np.random.default_rng(5)
    drawn = []
    for _ in range(4000):
        chosen = source.integers(0, 100, 100)
        drawn.append(Confusion.of(unsafe[chosen], flagged[chosen]).f1)
    assert f1_interval(*counts) == pytest.approx(np.percentile(np.array(drawn, float), [2.5, 97.5]), abs=0.015)


def test_an_areas_interval_holds_it_and_one_class_has_none() -> None:
    source = np.random.default_rng(1)
    unsafe = source.random(200) < 0.4
    scores = source.random(200) + 0.5 * unsafe
    interval = bootstrap(curves.area, scores, unsafe)
    assert interval is not None
    assert interval[0] < curves.area(scores, unsafe) < interval[1]
    assert interval[1] - interval[0] < 0.2
    assert bootstrap(curves.area, scores, np.ones(200, np.bool_)) is None


def test_a_curve_by_hand() -> None:
    found = curves.curve(np.array([0.9, 0.8, 0.8, 0.3]), flags("1100"))
    assert found.thresholds.tolist() == [0.9, 0.8, 0.3]
    assert found.recall.tolist() == [0.5, 1, 1]
    assert found.false_positive_rate.tolist() == [0, 0.5, 1]
    assert found.precision.tolist() == [1, 2 / 3, 0.5]
    assert found.area == 0.875
    assert found.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize("seed", range(20))
def test_curves_equal_brute_force(seed: int) -> None:
    source = np.random.default_rng(seed)
    scores = source.integers(0, 6 if seed % 2 else 1000, 40) / 7
    unsafe = source.random(40) < 0.3
    unsafe[:2] = True, False
    found = curves.curve(scores, unsafe)
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(scores[unsafe], scores[~unsafe])]
    assert found.area == pytest.approx(sum(pairs) / len(pairs))
    before = total = 0.0
    for number, threshold in enumerate(sorted(set(scores), reverse=True)):
        each = Confusion.of(unsafe, scores >= threshold)
        assert each.recall is not None
        assert each.precision is not None
        columns = (found.recall[number], found.precision[number], found.false_positive_rate[number])
        assert columns == pytest.approx((each.recall, each.precision, each.false_positive_rate))
        total += (each.recall - before) * each.precision
        before = each.recall
    assert found.average_precision == pytest.approx(total)


@pytest.mark.parametrize("seed", range(20))
def test_a_chosen_threshold_is_the_least_that_holds_the_rate(seed: int) -> None:
    source = np.random.default_rng(seed)
    scores = source.integers(0, 8 if seed % 2 else 1000, 30) / 1000
    for wanted in (0.0, 0.01, 0.1, 0.34, 0.99):
        threshold = curves.choose(scores, np.zeros(30, np.bool_), wanted)
        assert (scores > threshold).mean() <= wanted
        lower = scores[scores < threshold]
        assert len(lower) == 0 or (scores >= lower.max()).mean() > wanted
        moved = scores + source.uniform(-4e-4, 4e-4, 30)
        assert ((moved > threshold) == (scores > threshold)).all()
    assert curves.choose(scores, np.zeros(30, np.bool_), 1.0) == 0


def test_the_least_threshold_goes_no_further_than_the_next_score_of_any_row() -> None:
    """Unsafe rows stand between the safe rows' scores and 1: a threshold beyond them would find none of them."""
    scores = np.concatenate([np.linspace(0.01, 0.30, 50), np.linspace(0.35, 0.62, 50)])
    unsafe = np.arange(100) >= 50
    threshold = curves.choose(scores, unsafe, 0.01)
    assert threshold == pytest.approx(0.325)
    assert Confusion.of(unsafe, scores > threshold).recall == 1


def test_an_interval_that_would_mean_nothing_is_not_given() -> None:
    two = np.array([True, False])
    assert bootstrap(curves.area, np.array([0.9, 0.1]), two) is None
    many, scores = np.repeat(two, 30), np.repeat([0.9, 0.1], 30)
    assert bootstrap(curves.area, scores, many) is None  # no row is wrong, so no resample is
    assert f1_interval(2, 0, 0, 2) is None
    assert f1_interval(30, 0, 0, 30) is None
    assert f1_interval(30, 1, 1, 30) is not None


def test_failed_rows_are_bounded_by_class() -> None:
    """Of 434 rows 68 are unsafe; 11 failed, 8 of them unsafe: recall is 53 of 60 without them."""
    rows = [({"label": True, "id": n}, answer(0.9 if n < 53 else 0.1)) for n in range(60)]
    rows += [({"label": False, "id": n}, answer(0.1)) for n in range(363)]
    found = bounds(judged(rows), [True] * 8 + [False] * 3)
    for name, recall, false_positives in (("missed", 53 / 68, 0), ("blocked", 61 / 68, 3)):
        for mode in ("strict", "loose"):
            assert found[name][mode]["recall"]["value"] == pytest.approx(recall)
            assert (found[name][mode]["fp"], found[name][mode]["recall"]["of"]) == (false_positives, 68)


def test_a_half_has_both_classes_and_keeps_duplicates_together() -> None:
    alternating = judged([({"label": n % 2 == 0, "prompt": f"{n}"}, answer(0.5)) for n in range(100)])
    chosen = half(alternating)
    assert (chosen.sum(), (chosen & alternating.unsafe).sum()) == (50, 25)
    assert (chosen == half(alternating)).all()
    rows = judged([({"label": n % 3 == 0, "prompt": f"{n % 30}"}, answer(0.5)) for n in range(90)])
    sides: dict[str, set[bool]] = {}
    for text, side in zip(rows.texts, half(rows), strict=True):
        sides.setdefault(text, set()).add(bool(side))
    assert len(sides) == 30
    assert all(len(each) == 1 for each in sides.values())
    assert 40 <= half(rows).sum() <= 50


PUBLISHED = [
    (98, 123, (96, 41, 22, 32, 31), 126, (0.6678383128295254, 0.21616871704745166)),
    (39, 699, (21, 2, 1, 0, 0), 51, (0.9372693726937269, 0.8597785977859779)),
]
"""Counts and rates that upstream's eval/README.md prints for Qwen3Guard-Stream-4B: ahead, hit, five bins, safe."""


@pytest.mark.parametrize(("ahead", "hit", "behind", "safe", "rates"), PUBLISHED)
def test_hits_give_upstreams_published_rates(
    ahead: int, hit: int, behind: tuple[int, ...], safe: int, rates: tuple[float, float]
) -> None:
    distances: list[int | None] = [-7] * ahead + [0] * hit + [None] * safe
    for count, edges in zip(behind, ((1, 32), (33, 64), (65, 128), (129, 256), (257, 9999)), strict=True):
        distances += [edges[number % 2] for number in range(count)]
    found = hits(distances)
    assert list(found["bins"].values()) == [ahead, hit, *behind, safe]
    assert found["within_128"]["value"] == pytest.approx(rates[0], abs=1e-15)
    assert found["exact"]["value"] == pytest.approx(rates[1], abs=1e-15)


def test_what_upstream_prints_as_strict_is_loose() -> None:
    """thinking_loc, 569 unsafe rows: 126 are not flagged at all, so 443 are in strict mode; printed as loose."""
    strict = Confusion(443, 0, 126, 0)
    assert strict.recall == pytest.approx(0.7786, abs=5e-5)
    assert strict.f1 == pytest.approx(0.8755, abs=5e-5)


def upstream(levels: str, split: int, start: int, end: int) -> tuple[str, int | None, bool, bool]:
    """What eval/eval_stream.py makes of one unsafe row: the level, the distance, exact, and within 128 beside it."""
    found, index = "S", -1
    for wanted in "UC":
        if found == "S" and wanted * 2 in levels:
            found, index = wanted, levels.index(wanted * 2) + 1
    if found == "S":
        return found, None, False, False
    position = index + split
    exact = start <= position <= end
    distance = 0 if exact else position - end if position > end else position - start
    return found, distance, exact, not exact and position - end <= 128


def kept(levels: str, first: int, category: str = "PII") -> dict[str, Any]:
    rows = [
        [0.2 + 0.6 * (level is LETTERS[letter]) - 0.2 * (level is not LETTERS[letter]) / 2 for level in RISK_ORDER]
        for letter in levels
    ]
    return {
        "prompt": {"severity": [1, 0, 0], "level": "Safe", "category": None},
        "tokens": {
            "first": first,
            "severity": rows,
            "levels": [LETTERS[letter].value for letter in levels],
            "categories": [None if letter == "S" else category for letter in levels],
            "ends": [2 * number + 2 for number in range(len(levels))],
        },
    }


def causal(levels: str, unsafe: str) -> int | None:
    pairs = (index for index in range(1, len(levels)) if levels[index] in unsafe and levels[index - 1] in unsafe)
    return next(pairs, None)


@pytest.mark.parametrize("seed", range(5))
def test_streams_are_flagged_by_both_rules_as_brute_force_says(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(200):
        levels = "".join(dice.choices("SSUC", k=dice.randint(1, 12)))
        if dice.random() < 0.3:
            levels = "S" * dice.randint(100, 300) + levels
        first, start = dice.randint(5, 20), dice.randint(0, 40)
        row = {"unsafe_start_index": start, "unsafe_end_index": start + dice.randint(0, 20)}
        found = stream_answer(kept(levels, first), row)
        strict, loose = causal(levels, "UC"), causal(levels, "U")
        assert found.decisions == {"strict": strict is not None, "loose": loose is not None}
        level, distance, exact, near = upstream(levels, first, *row.values())
        assert found.upstream == {"strict": level != "S", "loose": level == "U"}
        assert found.distances is not None
        assert found.distances["upstream"] == distance
        one = hits([distance])
        assert (one["exact"]["value"], one["within_128"]["value"]) == (exact, exact or near)
        sentence = Span(*row.values())
        for mode, place in (("strict", strict), ("loose", loose)):
            assert found.distances[mode] == (None if place is None else sentence.distance(first + place))
        letters = [LETTERS[letter] for letter in levels]
        named = [None if letter == "S" else Category.PII for letter in levels]
        assert first_flag(letters, named, strict=True) == strict


def test_a_streams_score_is_where_thresholds_turn() -> None:
    source = np.random.default_rng(2)
    for _ in range(100):
        risks = source.random(source.integers(1, 8))
        at = debounced(risks)
        tokens = [
            TokenVerdict(
                0, RiskLevel.SAFE, None, {RiskLevel.SAFE: 1 - risk}, {Category.PII: 1.0}, False, False, False, 0, None
            )
            for risk in risks
        ]
        for threshold, flagged in ((at - 1e-9, len(risks) >= DEFAULT_DEBOUNCE), (at + 1e-9, False)):
            limits = Thresholds(min(max(threshold, 0.0), 1.0))
            assert (max(runs(map(limits.is_unsafe, tokens))) >= DEFAULT_DEBOUNCE) == flagged


def test_a_sentence_in_characters_is_found_in_tokens() -> None:
    ends = [3, 3, 7, 12]  # two tokens spell the first characters
    assert span({"unsafe_start": 3, "unsafe_end": 8}, 10, ends) == Span(12, 13)
    assert span({"unsafe_start": 0, "unsafe_end": 1}, 10, ends) == Span(10, 10)
    assert span({"unsafe_start": 4, "unsafe_end": 5}, 10, ends) == Span(12, 12)
    assert span({"unsafe_start": 12, "unsafe_end": 20}, 10, ends) is None
    assert span({"unsafe_start_index": 11, "unsafe_end_index": 12}, 10, ends) == Span(11, 12)
    assert span({"unsafe_start": "3", "unsafe_end": 8.0}, 10, ends) == Span(12, 13)  # as a CSV or a table has them
    assert span({"unsafe_start": "", "unsafe_end": True}, 10, ends) is None
    assert span({}, 10, ends) is None


def answer(risk: float, *categories: str, unsafe: float | None = None) -> JudgedRow:
    decisions = {"strict": risk > 0.5, "loose": (risk if unsafe is None else unsafe) > 0.5}
    return JudgedRow(decisions, categories, risk, risk if unsafe is None else unsafe)


def judged(rows: list[tuple[dict[str, Any], JudgedRow]]) -> JudgedRows:
    return JudgedRows.of(rows, LabelFields())


def test_tables_by_category_and_by_language_by_hand() -> None:
    found = figures(
        judged(
            [
                ({"label": "Unsafe", "category": "PII", "language": "en"}, answer(0.9, "PII")),
                (
                    {"label": "Unsafe", "category": ["PII", "Violent"], "language": "de"},
                    answer(0.8, "Violent", unsafe=0.1),
                ),
                ({"label": "Unsafe", "category": "PII", "language": "de"}, answer(0.2)),
                ({"label": "Safe", "category": "PII", "language": "en"}, answer(0.7, "PII")),
                ({"label": "Safe"}, answer(0.1)),
            ]
        )
    )
    pii = found["categories"]["PII"]
    assert (pii["strict"]["recall"]["value"], pii["loose"]["recall"]["value"]) == (2 / 3, 1 / 3)
    assert (pii["strict"]["named"]["value"], pii["loose"]["named"]["value"]) == (1 / 2, 1)
    assert found["categories"]["Violent"]["loose"]["named"]["value"] is None
    german = found["groups"]["language"]["de"]
    assert german["rows"] == 2
    assert (german["strict"]["recall"]["value"], german["loose"]["recall"]["value"]) == (1 / 2, 0)
    assert set(found["groups"]["language"]) == {"en", "de", "(no language)"}
    assert found["decisions"]["strict"]["f1"]["value"] == pytest.approx(2 / 3)
    assert "hits" not in found
    assert "upstream_rule" not in found


def test_each_mode_is_named_by_its_own_flag() -> None:
    """Controversial of another category first, Unsafe later: the loose flag names the later one."""
    tokens = kept("SCCUU", 0)
    tokens["tokens"]["categories"] = [None, "Violent", "Violent", "PII", "PII"]
    row = stream_answer(tokens, {})
    assert (row.named("strict"), row.named("loose")) == (("Violent",), ("PII",))
    named = figures(judged([({"label": True, "category": "PII"}, row)]))["categories"]["PII"]
    assert (named["strict"]["named"]["value"], named["loose"]["named"]["value"]) == (0, 1)


def test_rows_without_a_language_are_not_those_whose_language_is_the_text_none() -> None:
    rows = [({"label": True, "language": each}, answer(0.9)) for each in ("None", None, float("nan"))]
    groups = figures(judged(rows))["groups"]["language"]
    assert {name: each["rows"] for name, each in groups.items()} == {"None": 1, "(no language)": 2}


@pytest.mark.parametrize("per_category", [False, True])
@pytest.mark.parametrize("wanted", [0.02, 0.1, 0.3])
def test_proposed_thresholds_hold_the_rate_on_the_rows_and_nearly_beyond(per_category: bool, wanted: float) -> None:
    source = np.random.default_rng(4)
    names = [category.value for category in Category][:4]
    rows = []
    for number in range(4000):
        unsafe = bool(source.random() < 0.4)
        kind = int(source.choice(4, p=[0.6, 0.3, 0.095, 0.005]))
        risk = float(np.clip(source.normal(0.3 + 0.4 * unsafe + 0.05 * kind, 0.2), 0, 1))
        rows.append(({"label": "Unsafe" if unsafe else "Safe", "id": number}, answer(risk, names[kind])))
    limits, found = propose(judged(rows), wanted, per_category=per_category)
    assert bool(limits.categories) is per_category
    assert found["rows"]["false_positive_rate"]["value"] <= wanted
    assert found["rows"]["false_positive_rate"]["value"] > 0.8 * wanted
    assert found["held_out"]["false_positive_rate"]["value"] == pytest.approx(wanted, abs=0.03)
    flagged = sum(
        each.risk > limits.categories.get(Category(each.categories[0]), limits.default)
        for row, each in rows
        if row["label"] == "Safe"
    )
    assert flagged == found["rows"]["fp"]


def test_no_threshold_without_safe_rows() -> None:
    with pytest.raises(errors.InvalidRequest, match="no rows labelled safe"):
        propose(judged([({"label": True}, answer(0.5))]), 0.1, per_category=False)


def test_gens_category_is_the_one_it_names_or_else_the_likeliest() -> None:
    found: dict[str, Any] = {
        "categories": [],
        "strict": False,
        "loose": False,
        "probabilities": {
            "severity": {"Safe": 0.7, "Unsafe": 0.1, "Controversial": 0.2},
            "categories": {"Violent": 0.01, "PII": 0.04, "None": 0.95},
        },
    }
    assert gen_answer(found).categories == ("PII",)
    assert gen_answer(found | {"categories": ["Violent", "PII"]}).categories == ("Violent", "PII")
    assert (gen_answer(found).risk, gen_answer(found).unsafe) == (pytest.approx(0.3), 0.1)
    broken = found | {"answer_status": "cut", "probabilities": found["probabilities"] | {"categories": {}}}
    assert gen_answer(broken).categories == ()
    assert gen_answer(broken | {"categories": ["PII"]}).categories == ("PII",)
