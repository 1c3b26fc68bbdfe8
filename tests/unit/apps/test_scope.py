"""The proxy's scopes: one for each key, from which the key cannot be found."""

from qwen3guard_apps.proxy.scope import Scopes


def test_each_key_has_a_scope_that_does_not_tell_it_and_no_key_has_none() -> None:
    scopes, after_a_restart = Scopes(), Scopes()
    one, other = (scopes.of({"Authorization": f"Bearer {key}"}) for key in ("sk-one", "sk-other"))
    assert one == scopes.of({"Authorization": "Bearer sk-one"})
    assert len({one, other, after_a_restart.of({"Authorization": "Bearer sk-one"})}) == 3
    assert "one" not in str(one)
    assert scopes.of({}) is scopes.of({"Authorization": ""}) is None
    assert scopes.of({"Authorization": "Bearer \udce9"})


def test_callers_with_the_proxys_own_key_are_told_apart_by_the_one_for_the_llm() -> None:
    scopes, own = Scopes(), {"Authorization": "Bearer the-proxys-own"}
    for name in ("x-api-key", "api-key"):
        assert len({scopes.of(own | {name: key}) for key in ("sk-one", "sk-other", "")}) == 3
    assert scopes.of({"api-key": "sk-one"}) != scopes.of({"x-api-key": "sk-one"})
