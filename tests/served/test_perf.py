"""perf_analyzer, for real, on the served demo guard. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trustme
from qwen3guard_apps.cli.main import main
from qwen3guard_apps.cli.perf_analyzer import CONVERSATIONS, Analyzer, Load
from qwen3guard_client import GuardClient, Tls
from qwen3guard_contract import errors
from qwen3guard_contract.errors import TokenRefused
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.server_tls import ServerTls
from qwen3guard_server.settings import ServerSettings
from support.serving import free_port


@pytest.fixture(scope="module")
def analyzer() -> Analyzer:
    return Analyzer()


@pytest.mark.parametrize("load", [Load(2), Load(rate=30.0)], ids=str)
def test_conversations_are_classified(analyzer: Analyzer, server: EmbeddedServer, load: Load) -> None:
    (found,) = analyzer.classify(server.url, load, 0.5, CONVERSATIONS)
    assert found.requests > 5
    assert 0 < found.p50_ms <= found.p90_ms <= found.p99_ms
    assert found.load == str(load)


@pytest.mark.parametrize("load", [Load(2), Load(rate=60.0)], ids=str)
def test_streams_step_at_their_positions(analyzer: Analyzer, server: EmbeddedServer, load: Load) -> None:
    opened, stepped = analyzer.stream_step(server.url, load, 1.0, tokens=6)
    assert (opened.work, stepped.work) == ("stream prefill", "stream step")
    assert 0 < opened.requests < stepped.requests


def test_the_command_writes_json(server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["perf", "--url", server.url, "--work", "classify", "--concurrency", "1", "--seconds", "2", "--json"]
    assert main(arguments) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["work"] == "classify"


def test_a_server_that_is_not_there_is_named(analyzer: Analyzer) -> None:
    with pytest.raises(errors.Unreachable):
        analyzer.classify("127.0.0.1:9", Load(1), 0.5, CONVERSATIONS)
    with pytest.raises(errors.Unreachable):
        analyzer.stream_step("127.0.0.1:9", Load(1), 0.5, 6)


def test_a_perf_analyzer_that_fails_is_quoted(analyzer: Analyzer, server: EmbeddedServer) -> None:
    with pytest.raises(errors.PerfAnalyzerError, match=r"^perf_analyzer failed: .*EMPTY_TEXT"):
        analyzer.classify(server.url, Load(1), 0.5, [("",)])


def test_a_closed_server_is_loaded_with_its_token_over_tls(repository: Path, tmp_path: Path) -> None:
    """perf_analyzer can name no other server than the url's host, so the certificate is the host's."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    token = "an-api-token-of-the-tests-3141"
    tls = ServerTls(tmp_path / "server.pem", tmp_path / "server.key")
    settings = ServerSettings(repository, grpc_port=free_port(), load_s=120, tls=tls, token=token)
    with (
        EmbeddedServer(settings) as server,
        GuardClient(server.url, tls=server.tls, token=token) as own,
    ):
        server.wait_ready(lambda: canary.check(own, server.manifests))
        analyzer = Analyzer(tls=Tls(ca=tmp_path / "ca.pem"), token=token)
        url = f"localhost:{settings.grpc_port}"
        (classify,) = analyzer.classify(url, Load(2), 0.5, CONVERSATIONS)
        assert classify.requests > 0
        assert [each.work for each in analyzer.stream_step(url, Load(2), 0.5, 8)] == ["stream prefill", "stream step"]
        with pytest.raises(TokenRefused):
            Analyzer(tls=Tls(ca=tmp_path / "ca.pem")).classify(url, Load(1), 0.5, CONVERSATIONS)
