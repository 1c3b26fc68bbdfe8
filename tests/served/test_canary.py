"""The canary: its values are compared for every guard."""

from __future__ import annotations

import os
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from qwen3guard_client import GuardClient
from qwen3guard_contract import wire
from qwen3guard_contract.errors import CanaryFailed, DeadlineExceeded, Overloaded, TextTooLong
from qwen3guard_server import canary
from qwen3guard_server.processes import model_processes
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


def test_a_model_that_answers_others_is_busy_and_one_that_answers_nobody_is_silent(
    stream_server: EmbeddedServer,
) -> None:
    """Texts that take the tokenizer a while each, and far more of them than it reads in the canary's time."""
    manifest = stream_server.manifests["stream_step"]
    tokenizer = wire.STREAM_TOKENIZER.name
    process = model_processes(stream_server.pid)[tokenizer]
    with GuardClient(stream_server.url, timeout_s=60) as client:
        ask = canary.canaries(client, {"stream_step": manifest})[tokenizer]
        with ThreadPoolExecutor(200) as crowd:
            asked = [crowd.submit(refused, client) for _ in range(600)]
            asked[50].result()
            with pytest.raises(Overloaded, match="busy"):
                ask(0.2)
            for each in asked:
                each.result()
        assert ask(5)
        wait_for_counts(client, tokenizer)
        os.kill(process, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceeded):
                ask(0.3)
        finally:
            os.kill(process, signal.SIGCONT)
        assert ask(5)


def wait_for_counts(client: GuardClient, model: str) -> None:
    """Returns when Triton has counted what it answered: it sends an answer first, and counts it a moment later."""
    counted = -1
    while counted != (counted := client.answered(model)):
        time.sleep(0.3)


def refused(client: GuardClient) -> None:
    with pytest.raises(TextTooLong):
        client.stream_step(str(uuid.uuid4()), prompt="bread " * 2500, start=True, end=True)
