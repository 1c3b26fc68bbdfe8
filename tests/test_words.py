"""Labels, policy and errors: the words everything else relies on."""

from __future__ import annotations

import inspect

import pytest
from qwen3guard_client import aio, client, errors, labels, stream, wire
from qwen3guard_client.errors import GuardError, from_text
from qwen3guard_client.labels import Category, RiskLevel
from qwen3guard_client.policy import Policy, upstream_evaluation_rule


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
    policy = Policy()
    assert policy.runs(judged(levels)) == policy.runs(judged(levels), strict=True) == strict
    assert policy.runs(judged(levels), strict=False) == Policy(strict=False).runs(judged(levels)) == loose
    for cut in range(1, len(levels)):
        assert policy.runs(judged(levels[cut:]), before=strict[cut - 1]) == strict[cut:]


def test_only_blocked_categories_count() -> None:
    policy = Policy(blocked=frozenset({Category.VIOLENT}))
    assert policy.runs([*judged("UU"), *judged("UU", Category.VIOLENT)]) == [0, 0, 1, 2]
    assert not policy.counts(RiskLevel.UNSAFE, Category.PII)
    assert policy.counts(RiskLevel.CONTROVERSIAL, Category.VIOLENT)
    assert not policy.counts(RiskLevel.CONTROVERSIAL, Category.VIOLENT, strict=False)


def test_a_debounce_below_one_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="at least 1"):
        Policy(debounce=0)


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
    for ours, theirs in ((client.GuardClient, aio.AsyncGuardClient), (stream.Stream, stream.AsyncStream)):
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
                expected = expected.replace("Iterable[Piece]", "AsyncIterable[Piece] | Iterable[Piece]")
                assert str(inspect.signature(other)) == expected
                assert inspect.iscoroutinefunction(other) == (name not in ("stream", "moderate", "flagged"))


def test_an_ensembles_tensors_come_from_its_steps() -> None:
    for model in wire.MODELS:
        made = set(model.inputs)
        for step in model.steps:
            assert set(step.inputs) <= made
            made |= set(step.outputs)
        assert not model.steps or set(model.outputs) <= made
