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
