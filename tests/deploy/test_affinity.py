"""Two real servers behind the shipped nginx configuration, and behind Envoy as the chart configures it: where requests
go, and what a lost replica costs."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
import tritonclient.grpc as triton
from qwen3guard_client import AsyncGuardClient, GuardClient, RiskLevel, TokenVerdict
from qwen3guard_client.transport import calls, failures
from qwen3guard_client.transport.connection import Tls
from qwen3guard_contract import errors
from qwen3guard_server.server import EmbeddedServer
from support.envoy import Envoy, envoy
from support.nginx import Proxy, nginx, self_signed
from support.same_verdicts import PROMPT, TEXT, TIMEOUT_S, same
from support.serving import free_port, serve, wait_ready
from support.texts import cut
from tritonclient.utils import InferenceServerException

STREAMS = 24
"""So many that the hash does not give all of them to one replica by chance."""


@pytest.fixture(scope="module")
def replicas(repository: Path) -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    nginx(), envoy()  # without them there is nothing to start servers for
    with serve(repository) as one, serve(repository) as other:
        wait_ready(one)
        wait_ready(other)
        yield one, other


@pytest.fixture
def both(replicas: tuple[EmbeddedServer, EmbeddedServer]) -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """The replicas, for a test that stops the first."""
    yield replicas
    replicas[0].restart()
    wait_ready(replicas[0])


@pytest.fixture(params=[Proxy, Envoy], ids=["nginx", "envoy"])
def proxy(
    request: pytest.FixtureRequest, replicas: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path
) -> Iterator[Proxy | Envoy]:
    with request.param(tmp_path, [replica.url for replica in replicas]) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(replicas: tuple[EmbeddedServer, EmbeddedServer]) -> tuple[TokenVerdict, ...]:
    with GuardClient(replicas[0].url) as guard, guard.stream(PROMPT) as stream:
        stream.step(TEXT)
    return stream.verdicts


def executed(replica: EmbeddedServer, model: str) -> int:
    """Requests that a replica's model has answered."""
    with triton.InferenceServerClient(replica.url) as client:
        return int(client.get_inference_statistics(model).model_stats[0].inference_stats.success.count)


class Crowd:
    """As many streams of one text, each in pieces of its own, at once; the verdicts and the sessions of each."""

    def __init__(self, proxy: Proxy | Envoy, action: Callable[[], object] = lambda: None) -> None:
        self._url = proxy.url
        self._pieces = [cut(TEXT, Random(seed), longest=40) for seed in range(STREAMS)]
        self.steps = sum(map(len, self._pieces))
        self._action = threading.Thread(target=action)
        """It begins when every stream has done half of its steps: a replica may be faster than the other."""
        self.verdicts: list[tuple[TokenVerdict, ...]] = []
        self.sessions: list[Counter[str]] = []

    def run(self) -> Crowd:
        halfway = threading.Barrier(STREAMS, self._action.start, TIMEOUT_S)
        with GuardClient(self._url, timeout_s=TIMEOUT_S) as guard:

            def moderate(pieces: list[str]) -> tuple[tuple[TokenVerdict, ...], Counter[str]]:
                sessions: Counter[str] = Counter()
                with guard.stream(PROMPT) as stream:
                    for number, piece in enumerate(pieces):
                        if number == len(pieces) // 2:
                            halfway.wait()
                        stream.step(piece)
                        sessions[stream.session] += 1
                return stream.verdicts, sessions

            with ThreadPoolExecutor(STREAMS) as threads:
                return self._done(list(threads.map(moderate, self._pieces)))

    async def run_async(self) -> Crowd:
        halfway = asyncio.Barrier(STREAMS)
        async with AsyncGuardClient(self._url, timeout_s=TIMEOUT_S) as guard:

            async def moderate(pieces: list[str]) -> tuple[tuple[TokenVerdict, ...], Counter[str]]:
                sessions: Counter[str] = Counter()
                async with guard.stream(PROMPT) as stream:
                    for number, piece in enumerate(pieces):
                        if number == len(pieces) // 2 and await halfway.wait() == 0:
                            self._action.start()
                        await stream.step(piece)
                        sessions[stream.session] += 1
                return stream.verdicts, sessions

            return self._done(await asyncio.gather(*map(moderate, self._pieces)))

    def _done(self, found: list[tuple[tuple[TokenVerdict, ...], Counter[str]]]) -> Crowd:
        self._action.join()
        self.verdicts, self.sessions = map(list, zip(*found, strict=True))
        return self

    def moved(self) -> int:
        """Streams that were replayed under another session."""
        return sum(len(sessions) > 1 for sessions in self.sessions)


def test_every_step_of_a_stream_reaches_the_replica_that_holds_it(
    replicas: tuple[EmbeddedServer, EmbeddedServer], proxy: Proxy | Envoy, undisturbed: tuple[TokenVerdict, ...]
) -> None:
    before = [executed(replica, "stream_guard") for replica in replicas]
    crowd = Crowd(proxy).run()
    taken = [executed(replica, "stream_guard") - count for replica, count in zip(replicas, before, strict=True)]
    assert crowd.moved() == 0
    assert min(taken) > 0
    assert sum(taken) >= crowd.steps + 2 * STREAMS  # each is opened and ended too; a long step may be sent again
    for verdicts in crowd.verdicts:
        same(verdicts, undisturbed)


def test_without_the_header_steps_go_astray(proxy: Proxy | Envoy) -> None:
    failed = []
    with triton.InferenceServerClient(proxy.url) as client:
        for number in range(12):
            session = f"headless-{type(proxy).__name__}-{number}"
            opening = calls.stream_step(session, prompt=PROMPT, start=True)
            ending = calls.stream_step(session, text="Mix flour.", position=0, end=True)
            try:
                for call in (opening, ending):
                    client.infer(**call.arguments(TIMEOUT_S) | {"headers": None})
            except InferenceServerException as error:
                failed.append(failures.error_of(error))
    # Where the ending reached the replica that has the session by chance, its position is wrong.
    assert {type(error) for error in failed} - {errors.PositionOutOfRange} == {errors.SessionLost}


def test_classifications_are_spread(replicas: tuple[EmbeddedServer, EmbeddedServer], proxy: Proxy | Envoy) -> None:
    before = [executed(replica, "gen_guard") for replica in replicas]
    with GuardClient(proxy.url) as guard:
        for _ in range(40):
            guard.classify(PROMPT)
    taken = [executed(replica, "gen_guard") - count for replica, count in zip(replicas, before, strict=True)]
    assert sum(taken) == 40
    assert min(taken) >= 8  # Envoy chooses at random between replicas that have as little to do


@pytest.mark.parametrize(("proxy", "client"), [(Proxy, "sync"), (Proxy, "async"), (Envoy, "async")], indirect=["proxy"])
def test_streams_outlive_a_killed_replica(
    both: tuple[EmbeddedServer, EmbeddedServer],
    proxy: Proxy | Envoy,
    undisturbed: tuple[TokenVerdict, ...],
    client: str,
) -> None:
    crowd = Crowd(proxy, lambda: both[0].stop(kill=True))
    if client == "sync":
        crowd.run()
    else:
        asyncio.run(crowd.run_async())
    for verdicts in crowd.verdicts:
        same(verdicts, undisturbed)
    assert 0 < crowd.moved() < STREAMS
    if isinstance(proxy, Proxy):
        assert "upstream" in proxy.log  # it does say what happened
    assert PROMPT not in proxy.log
    assert not [session for sessions in crowd.sessions for session in sessions if session in proxy.log]
    with GuardClient(proxy.url) as guard:
        for _ in range(4):
            guard.classify(PROMPT)


@pytest.mark.parametrize(("proxy", "announced"), [(Proxy, True), (Proxy, False), (Envoy, True)], indirect=["proxy"])
def test_streams_outlive_a_drained_replica(
    both: tuple[EmbeddedServer, EmbeddedServer],
    proxy: Proxy | Envoy,
    undisturbed: tuple[TokenVerdict, ...],
    announced: bool,
) -> None:
    """SIGTERM, after the proxy has been told, as on scale-in, or out of the blue."""
    drained, other = both

    def drain() -> None:
        if announced:
            proxy.use([f"{drained.url} down", other.url])
        drained.stop()

    crowd = Crowd(proxy, drain).run()
    for verdicts in crowd.verdicts:
        same(verdicts, undisturbed)
    assert 0 < crowd.moved() < STREAMS


def test_clients_speak_tls_to_it(proxy: Proxy | Envoy) -> None:
    with GuardClient(proxy.tls_url, tls=Tls(proxy.certificate)) as guard:
        assert guard.classify(PROMPT).severity is RiskLevel.SAFE


@pytest.mark.parametrize("proxy", [Proxy], indirect=True)
def test_a_renewed_certificate_needs_no_reload(proxy: Proxy) -> None:
    """Envoy Gateway watches the secret itself."""

    def shown() -> str:
        host, _, port = proxy.tls_url.rpartition(":")
        return ssl.get_server_certificate((host, int(port)))

    before = shown()
    self_signed(proxy.certificate)
    assert shown() == proxy.certificate.read_text() != before


def test_it_refuses_with_errors_that_a_client_knows(proxy: Proxy | Envoy, tmp_path: Path) -> None:
    says = {
        Proxy: ("8 MiB", "This call is not served here.", "no replica answers"),
        Envoy: ("the proxy before the server", "UNIMPLEMENTED", "upstream"),
    }
    too_long, unserved, nobody = says[type(proxy)]
    with GuardClient(proxy.url) as guard, pytest.raises(errors.TextTooLong, match=too_long):
        guard.classify("a" * 9 * 2**20)
    with (
        triton.InferenceServerClient(proxy.url) as client,
        pytest.raises(InferenceServerException, match=unserved) as refused,
    ):
        client.get_inference_statistics("gen_guard")
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    with (
        type(proxy)(lonely, [f"127.0.0.1:{free_port()}"]) as alone,
        GuardClient(alone.url) as guard,
        pytest.raises(errors.Unreachable, match=nobody),
    ):
        guard.classify(PROMPT)
