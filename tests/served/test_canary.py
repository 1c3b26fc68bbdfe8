"""The canary: its values are compared for every guard."""

from __future__ import annotations

from dataclasses import replace

import pytest
from qwen3guard_client import GuardClient
from qwen3guard_contract.errors import CanaryFailed
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer


@pytest.mark.parametrize("ensemble", ["classify", "stream_step"])
def test_one_value_that_is_another_is_noticed(server: EmbeddedServer, guard: GuardClient, ensemble: str) -> None:
    manifest = server.manifests[ensemble]
    assert canary.check(guard, {ensemble: manifest})
    values = list(manifest.canary.values)
    values[0] += 0.5
    other = replace(manifest, canary=replace(manifest.canary, values=type(manifest.canary.values)(values)))
    with pytest.raises(CanaryFailed, match=manifest.variant):
        canary.check(guard, {ensemble: other})
