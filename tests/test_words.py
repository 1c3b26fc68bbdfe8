"""Labels, policy and errors: the words everything else relies on."""

from __future__ import annotations

import inspect

import pytest
from qwen3guard_client import aio, client, errors, labels, wire
from qwen3guard_client.errors import GuardError, from_text
from qwen3guard_client.labels import Category, RiskLevel
from qwen3guard_client.policy import flags


def test_index_order_is_the_heads_and_not_severity() -> None:
    """One public server compares indices, and so takes Controversial for the worst."""
    assert [level.value for level in labels.RISK_ORDER] == ["Safe", "Unsafe", "Controversial"]
    assert sorted(RiskLevel) == [RiskLevel.SAFE, RiskLevel.CONTROVERSIAL, RiskLevel.UNSAFE]


def test_jailbreak_is_a_prompts_category_only() -> None:
    assert labels.QUERY_CATEGORY_ORDER[-1] is Category.JAILBREAK
    assert Category.JAILBREAK not in labels.RESPONSE_CATEGORY_ORDER


def test_upstreams_quoted_label_is_ours() -> None:
    assert Category(labels.normalize('"Violent"')) is Category.VIOLENT


@pytest.mark.parametrize(
    ("levels", "strict", "loose"),
    [
        ("SUS", [False, False, False], [False, False, False]),
        ("SUUS", [False, False, True, False], [False, False, True, False]),
        ("CUC", [False, True, True], [False, False, False]),
        ("UCU", [False, True, True], [False, False, False]),
        ("UU", [False, True], [False, True]),
    ],
)
def test_two_in_a_row_flag_a_token(levels: str, strict: list[bool], loose: list[bool]) -> None:
    named = {"S": RiskLevel.SAFE, "U": RiskLevel.UNSAFE, "C": RiskLevel.CONTROVERSIAL}
    found = [named[letter] for letter in levels]
    assert flags([], found, strict=True) == strict
    assert flags([], found, strict=False) == loose
    for cut in range(len(found)):
        assert flags(found[:cut], found[cut:], strict=True) == strict[cut:]


def test_debounce_of_one_flags_at_once() -> None:
    assert flags([], [RiskLevel.UNSAFE], strict=True, debounce=1) == [True]


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
    for ours, theirs in ((client.GuardClient, aio.AsyncGuardClient), (client.Stream, aio.AsyncStream)):
        names = {name for name in vars(ours) if not name.startswith("_")}
        assert names == {name for name in vars(theirs) if not name.startswith("_")}
        for name in names:
            one, other = getattr(ours, name), getattr(theirs, name)
            assert inspect.getdoc(one) == inspect.getdoc(other)
            if callable(one):
                expected = str(inspect.signature(one)).replace("Stream", "AsyncStream")
                assert str(inspect.signature(other)) == expected
                assert inspect.iscoroutinefunction(other) == (name not in ("stream", "flagged"))


def test_an_ensembles_tensors_come_from_its_steps() -> None:
    for model in wire.MODELS:
        made = set(model.inputs)
        for step in model.steps:
            assert set(step.inputs) <= made
            made |= set(step.outputs)
        assert not model.steps or set(model.outputs) <= made
