"""More work than there is room for: who is let in, who is refused, with what, and that both are counted."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from overload import changed, counted
from qwen3guard_client import Classification, GuardClient
from qwen3guard_contract.errors import DeadlineExceeded, GuardError, Overloaded
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings
from support.serving import free_port, serve, stream_repository, wait_ready


def test_a_crowd_is_answered_rightly_or_refused_and_the_refused_are_counted(repository: Path, tmp_path: Path) -> None:
    models = changed(repository, tmp_path, None, pass_ms=300)
    metrics = free_port()
    with EmbeddedServer(ServerSettings(models, grpc_port=free_port(), metrics_port=metrics, load_s=120)) as server:
        wait_ready(server)
        with GuardClient(server.url) as guard, ThreadPoolExecutor(12) as crowd:
            alone = guard.classify("How do I bake bread?")
            found = list(crowd.map(lambda _: outcome(guard), range(36)))
            kinds = Counter(type(each) for each in found)
            assert set(kinds) == {Classification, Overloaded}
            answers = [each for each in found if isinstance(each, Classification)]
            assert all(each.severity_probabilities == alone.severity_probabilities for each in answers)
            assert guard.classify("How do I bake bread?").severity is alone.severity
        until = time.monotonic() + 10
        while sum(counted(metrics).values()) < kinds[Overloaded] and time.monotonic() < until:
            time.sleep(0.1)
        assert sum(counted(metrics).values()) == kinds[Overloaded]


def outcome(guard: GuardClient) -> Classification | GuardError:
    try:
        return guard.classify("How do I bake bread?")
    except GuardError as error:
        return error


def test_a_request_whose_time_runs_out_while_it_waits_gets_an_error(repository: Path, tmp_path: Path) -> None:
    models = changed(repository, tmp_path, None, pass_ms=1500)
    with serve(models) as server, GuardClient(server.url) as guard, ThreadPoolExecutor(1) as other:
        server.wait_ready(lambda: canary.check(guard, server.manifests))
        first = other.submit(guard.classify, "How do I bake bread?")
        time.sleep(0.5)
        with pytest.raises(DeadlineExceeded):
            guard.classify("How do I bake bread?", timeout_s=0.3)
        assert first.result().severity is guard.classify("How do I bake bread?").severity


def test_newcomers_are_refused_and_open_streams_go_on(repository: Path, tmp_path: Path) -> None:
    with serve(stream_repository(repository, tmp_path / "r", slots=2)) as server, GuardClient(server.url) as guard:
        wait_ready(server)
        with guard.stream("Hello.") as one, guard.stream("Hello.") as other:
            for _ in range(3):
                with pytest.raises(Overloaded):
                    guard.stream_step("newcomer", prompt="Hello.", start=True)
                assert one.step("Mix flour.").tokens == other.step("Mix flour.").tokens
        assert guard.stream_step("newcomer", prompt="Hello.", start=True, end=True).prompt_verdict
