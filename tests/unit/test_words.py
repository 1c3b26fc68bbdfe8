"""Labels, policy and errors: the words everything else relies on."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from qwen3guard_apps.evaluation.upstream_rule import upstream_evaluation_rule
from qwen3guard_client import (
    AsyncGuardClient,
    AsyncModeration,
    AsyncStream,
    Classification,
    GuardClient,
    Moderation,
    Stream,
    Thresholds,
    TokenVerdict,
)
from qwen3guard_contract import errors, labels, wire
from qwen3guard_contract.errors import GuardError, from_text
from qwen3guard_contract.labels import AnswerStatus, Category, RiskLevel
from qwen3guard_contract.policy import Policy, runs
from qwen3guard_contract.verdict import Window


def test_index_order_is_the_heads_and_not_severity() -> None:
    """One public server compares indices, and so takes Controversial for the worst."""
    assert [level.value for level in labels.RISK_ORDER] == ["Safe", "Unsafe", "Controversial"]
    assert sorted(RiskLevel) == [RiskLevel.SAFE, RiskLevel.CONTROVERSIAL, RiskLevel.UNSAFE]


def test_jailbreak_is_a_prompts_category_only() -> None:
    assert labels.QUERY_CATEGORY_ORDER[-1] is Category.JAILBREAK
    assert Category.JAILBREAK not in labels.RESPONSE_CATEGORY_ORDER


def test_upstreams_quoted_label_is_ours() -> None:
    assert Category(labels.normalize('"Violent"')) is Category.VIOLENT


LETTERS = {"S": RiskLevel.SAFE, "U": RiskLevel.UNSAFE, "C": RiskLevel.CONTROVERSIAL}


def judged(levels: str, category: Category = Category.PII) -> list[tuple[RiskLevel, Category | None]]:
    return [(LETTERS[letter], None if letter == "S" else category) for letter in levels]


@pytest.mark.parametrize(
    ("levels", "strict", "loose"),
    [
        ("SUS", [0, 1, 0], [0, 1, 0]),
        ("SUUS", [0, 1, 2, 0], [0, 1, 2, 0]),
        ("CUC", [1, 2, 3], [0, 1, 0]),
        ("UCU", [1, 2, 3], [1, 0, 1]),
        ("UU", [1, 2], [1, 2]),
    ],
)
def test_runs_of_unsafe_tokens_are_causal(levels: str, strict: list[int], loose: list[int]) -> None:
    for mode, expected in ((True, strict), (False, loose)):
        unsafe = [Policy().is_unsafe_level(*each, strict=mode) for each in judged(levels)]
        assert unsafe == [Policy(mode).is_unsafe_level(*each) for each in judged(levels)]
        assert runs(unsafe) == expected
        for cut in range(1, len(levels)):
            assert runs(unsafe[cut:], before=expected[cut - 1]) == expected[cut:]


def test_only_blocked_categories_count() -> None:
    policy = Policy(blocked=frozenset({Category.VIOLENT}))
    assert not policy.is_unsafe_level(RiskLevel.UNSAFE, Category.PII)
    assert policy.is_unsafe_level(RiskLevel.CONTROVERSIAL, Category.VIOLENT)
    assert not policy.is_unsafe_level(RiskLevel.CONTROVERSIAL, Category.VIOLENT, strict=False)


def probabilities(safe: float) -> dict[RiskLevel, float]:
    return {RiskLevel.SAFE: safe, RiskLevel.UNSAFE: 1 - safe, RiskLevel.CONTROVERSIAL: 0.0}


def classified(
    safe: float, *named: Category, level: RiskLevel = RiskLevel.SAFE, status: AnswerStatus = AnswerStatus.COMPLETE
) -> Classification:
    likely = {None: 0.9, Category.PII: 0.07, Category.VIOLENT: 0.03} if status is AnswerStatus.COMPLETE else {}
    levels = probabilities(safe)
    return Classification(level, named, None, levels, likely, {}, False, False, False, "", "", status)


def token(safe: float, category: Category | None = None) -> TokenVerdict:
    likely = {Category.PII: 0.6, Category.VIOLENT: 0.4}
    return TokenVerdict(0, RiskLevel.SAFE, category, probabilities(safe), likely, False, False, False, 0, None)


def test_thresholds_decide_by_category() -> None:
    limits = Thresholds(0.5, {Category.VIOLENT: 0.9, Category.PII: 0.1})
    assert limits.is_unsafe(classified(0.4, Category.COPYRIGHT))
    assert not limits.is_unsafe(classified(0.5, Category.COPYRIGHT))
    assert not limits.is_unsafe(classified(0.2, Category.VIOLENT))
    assert limits.is_unsafe(classified(0.2, Category.VIOLENT, Category.PII))
    assert limits.is_unsafe(classified(0.8))  # names none, and PII is the likeliest
    assert not limits.is_unsafe(classified(0.95))
    assert limits.is_unsafe(token(0.8))
    assert not limits.is_unsafe(token(0.8, Category.VIOLENT))
    assert not Thresholds(1.0).is_unsafe(classified(0.0))
    assert Thresholds(0.0).is_unsafe(classified(0.999))
    assert not Thresholds(0.0).is_unsafe(classified(1.0))


def test_a_text_in_windows_is_unsafe_if_one_of_them_is() -> None:
    severe, risky = classified(0.6, Category.VIOLENT, level=RiskLevel.UNSAFE), classified(0.2, Category.PII)
    whole = replace(severe, windows=(Window(0, 9, severe), Window(5, 14, risky)))
    limits = Thresholds(1.0, {Category.PII: 0.5})
    assert not limits.is_unsafe(severe)
    assert limits.is_unsafe(whole)
    assert Policy(thresholds=limits).unsafe_categories(whole) == {Category.PII}
    assert Policy().unsafe_categories(whole) == {Category.VIOLENT}


@pytest.mark.parametrize("status", [AnswerStatus.CUT, AnswerStatus.UNREADABLE])
def test_an_answer_that_broke_off_counts_if_it_would_under_any_category(status: AnswerStatus) -> None:
    broken = classified(0.6, level=RiskLevel.UNSAFE, status=status)
    for blocked in (frozenset(Category), frozenset({Category.COPYRIGHT})):
        assert Policy(blocked=blocked).unsafe_categories(broken) == blocked
    assert Policy().unsafe_categories(classified(0.6, Category.PII, level=RiskLevel.UNSAFE, status=status)) == {
        Category.PII
    }
    controversial = classified(0.6, level=RiskLevel.CONTROVERSIAL, status=status)
    assert Policy(strict=True).unsafe_categories(controversial)
    assert not Policy(strict=False).unsafe_categories(controversial)
    assert Thresholds(0.9, {Category.COPYRIGHT: 0.3}).is_unsafe(broken)
    assert not Thresholds(0.3).is_unsafe(classified(0.8, status=status))


def test_thresholds_stand_in_for_the_mode_and_for_nothing_else() -> None:
    for strict in (True, False):
        policy = Policy(strict, blocked=frozenset({Category.PII}), thresholds=Thresholds(0.5, {Category.PII: 0.2}))
        for level in RiskLevel:
            assert policy.is_unsafe(level, Category.PII, 0.21)
            assert not policy.is_unsafe(level, Category.PII, 0.2)
            assert not policy.is_unsafe(level, Category.VIOLENT, 1.0)  # not blocked
            assert policy.is_unsafe_level(level, Category.PII) == level.is_unsafe(strict=strict)
            assert Policy(strict).is_unsafe(level, Category.PII, 0.0) == level.is_unsafe(strict=strict)
    assert hash(policy) == hash(Policy(strict, blocked=policy.blocked, thresholds=policy.thresholds))


def test_thresholds_are_read_back() -> None:
    for limits in (
        Thresholds(),
        Thresholds(0, {Category.SUICIDE: 1}),
        Thresholds(1 / 3, dict.fromkeys(Category, 2 / 3)),
    ):
        assert Thresholds.parse(json.dumps(limits.as_dict(), indent=2).encode()) == limits
    assert Thresholds.parse(b'\xef\xbb\xbf{"default": 0.5}') == Thresholds()  # as some editors save UTF-8
    assert Thresholds.parse(b'{"categories": {"PII": 0.1}}') == Thresholds(categories={Category.PII: 0.1})


WRONG_THRESHOLDS = {
    b"": "must be JSON such as",
    b"{": "must be JSON such as",
    b"[]": "must be JSON such as",
    b"0.5": "must be JSON such as",
    b"null": "must be JSON such as",
    b"\xff": "must be JSON such as",
    b"[" * 2000: "must be JSON such as",
    b'{"a":' * 400: "must be JSON such as",
    b'{"t": 0.5}': "no other fields",
    b'{"default": 0.5, "debounce": 2}': "no other fields",
    b'{"categories": [0.5]}': "must be JSON such as",
    b'{"categories": null}': "must be JSON such as",
    b'{"categories": {"Rude": 0.5}}': "there are: Violent, .*, Jailbreak",
    b'{"categories": {"violent": 0.5}}': "there are: Violent, .*, Jailbreak",
    b'{"categories": {"None": 0.5}}': "there are: Violent, .*, Jailbreak",
    b'{"default": NaN}': "'default' must be a number from 0 to 1",
    b'{"default": Infinity}': "'default' must be a number from 0 to 1",
    b'{"default": 1.0000001}': "'default' must be a number from 0 to 1",
    b'{"default": -1e-9}': "'default' must be a number from 0 to 1",
    b'{"default": 1' + b"0" * 1900 + b"}": "'default' must be a number from 0 to 1",
    b'{"default": true}': "'default' must be a number from 0 to 1",
    b'{"default": "0.5"}': "'default' must be a number from 0 to 1",
    b'{"default": null}': "'default' must be a number from 0 to 1",
    b'{"default": [0.5]}': "'default' must be a number from 0 to 1",
    b'{"categories": {"PII": false}}': "'PII' must be a number from 0 to 1",
    b'{"categories": {"PII": {}}}': "'PII' must be a number from 0 to 1",
    b'{"default": 0.5' + b" " * 2000 + b"}": "have 2016 bytes; there may be 2000",
}


@pytest.mark.parametrize("text", WRONG_THRESHOLDS, ids=lambda text: repr(text[:30]))
def test_wrong_thresholds_are_named(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidRequest, match=WRONG_THRESHOLDS[text]) as caught:
        Thresholds.parse(text)
    assert re.fullmatch(r"The threshold[^\n]{10,235}\.", str(caught.value))
    path = tmp_path / "t.json"
    path.write_bytes(text)
    with pytest.raises(errors.InvalidRequest, match=f"t.json: {re.escape(str(caught.value))}"):
        Thresholds.read(path)
    with pytest.raises(errors.InvalidRequest, match="cannot be read"):
        Thresholds.read(tmp_path)


@pytest.mark.parametrize(
    ("levels", "level", "at"),
    [
        ("SSS", "S", -1),
        ("UCUCU", "S", -1),
        ("SCCUS", "C", 2),
        ("CCSSUU", "U", 5),  # a pair of Unsafe anywhere outranks an earlier pair of Controversial
        ("UUCC", "U", 1),
        ("", "S", -1),
    ],
)
def test_upstreams_evaluation_rule_as_its_code_has_it(levels: str, level: str, at: int) -> None:
    found = [LETTERS[letter] for letter in levels]
    assert upstream_evaluation_rule(found) == (LETTERS[level], at)


def test_errors_survive_the_wire_wherever_words_stand_around_them() -> None:
    for error in errors.BY_CODE.values():
        text = f"in ensemble 'classify', {error('One sentence.').wire_text()}"
        found = from_text(text)
        assert type(found) is error
        assert str(found) == "One sentence."
    assert from_text("[NO_SUCH_CODE] a sentence") is None


def test_every_error_has_a_code_of_its_own_and_stands_in_the_drawn_tree() -> None:
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, GuardError)]
    assert len({each.code for each in classes}) == len(classes)
    assert errors.__doc__ is not None
    for each in classes:
        assert each.__name__ in errors.__doc__


def test_sync_and_async_clients_are_equal() -> None:
    pairs = (GuardClient, AsyncGuardClient), (Stream, AsyncStream), (Moderation, AsyncModeration)
    for ours, theirs in pairs:
        names = {name for name in vars(ours) if not name.startswith("_")}
        assert names == {name for name in vars(theirs) if not name.startswith("_")}
        for name in names:
            one, other = getattr(ours, name), getattr(theirs, name)
            assert inspect.getdoc(one) == inspect.getdoc(other)
            if callable(one):
                expected = (
                    str(inspect.signature(one))
                    .replace("Stream", "AsyncStream")
                    .replace("Moderation", "AsyncModeration")
                )
                expected = expected.replace(
                    "Iterable[Piece | None]", "AsyncIterable[Piece | None] | Iterable[Piece | None]"
                )
                assert str(inspect.signature(other)) == expected
                assert inspect.iscoroutinefunction(other) == (name not in ("stream", "moderate", "flagged", "in_scope"))


def test_an_ensembles_tensors_come_from_its_steps() -> None:
    for model in wire.MODELS:
        made = set(model.inputs)
        for step in model.steps:
            assert set(step.inputs) <= made
            made |= set(step.outputs)
        assert not model.steps or set(model.outputs) <= made


@pytest.mark.parametrize(
    "wrong",
    [
        {"blocked": frozenset({"Violent"})},
        {"blocked": None},
        {"blocked": "Violent"},
        {"blocked": frozenset()},
        {"debounce": 2**62},
        {"debounce": 1.5},
        {"debounce": True},
        {"debounce": float("nan")},
        {"thresholds": {"default": 0.5}},
    ],
)
def test_a_policy_that_would_never_flag_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidRequest):
        Policy(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [b'{"default": 0.001, "default": 1}', b'{"categories": {"PII": 0, "PII": 1}}'])
def test_thresholds_that_say_two_things_are_refused(text: bytes) -> None:
    with pytest.raises(errors.InvalidRequest):
        Thresholds.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        b"", b" ", b"1", b"null", b'""', b"[]", b"[[]]", b"[0.5]", b"{}", b'{"categories": {}}', b'{"default": null}',
        b'{"default": ""}', b'{"default": [0.5]}', b'{"categories": null}', b'{"categories": []}',
        b'{"categories": {"PII": null}}', b'{"categories": {"": 0.5}}', b'{"default": Infinity}', b'{"default": 1e400}',
        b'{"default": -0.1}', b'{"Default": 0.5}', '{"default": 0.5}'.encode("utf-16"), b'{"default": 0.5}}',
    ],
)  # fmt: skip
def test_thresholds_that_say_nothing_are_refused(text: bytes) -> None:
    with pytest.raises(errors.InvalidRequest):
        Thresholds.parse(text)
