"""Envoy, configured as the chart asks Envoy Gateway to, before replicas that only say which they are: where requests go
when the fleet changes, and what costs a replica its place."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from qwen3guard_client.transport.calls import SESSION_HEADER
from support.chart import MODELS
from support.envoy import Envoy, envoy

METHOD = "/inference.GRPCInferenceService/ModelInfer"
SESSIONS = [f"session-{number}" for number in range(300)]
PINNED = "x-guard-replica"


class Replica:
    """Answers every ModelInfer with its own address, or with the status `fails`."""

    def __init__(self) -> None:
        self.fails: grpc.StatusCode | None = None
        infer = {"ModelInfer": grpc.unary_unary_rpc_method_handler(self._answer)}
        served = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", infer)
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=[served])
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _answer(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        if self.fails:
            context.abort(self.fails, "as the test wants")
        return self.url.encode()

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def replicas() -> Iterator[list[Replica]]:
    envoy()  # without one there is nothing to start
    running = [Replica() for _ in range(3)]
    yield running
    for each in running:
        each.stop()


Ask = Callable[..., str]


def asking(channel: grpc.Channel) -> Ask:
    call = channel.unary_unary(METHOD)

    def ask(session: str | None = None, **headers: str) -> str:
        metadata = [(name.replace("_", "-"), value) for name, value in headers.items()]
        if session is not None:
            metadata.append((SESSION_HEADER, session))
        return bytes(call(b"", metadata=metadata, timeout=20)).decode()

    return ask


def until(holds: Callable[[], bool]) -> None:
    """Envoy reads a changed list of replicas a moment later."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def placed(ask: Ask) -> dict[str, str]:
    return {session: ask(session) for session in SESSIONS}


def test_a_fleet_that_grows_and_shrinks_moves_what_it_must(replicas: list[Replica], tmp_path: Path) -> None:
    urls = [each.url for each in replicas]
    with Envoy(tmp_path, urls[:2]) as proxy, grpc.insecure_channel(proxy.url) as channel:
        ask = asking(channel)
        two = placed(ask)
        assert placed(ask) == two
        assert min(Counter(two.values()).values()) > len(SESSIONS) / 3
        proxy.use(urls)
        until(lambda: urls[2] in {ask(each) for each in SESSIONS[:50]})
        three = placed(ask)
        moved = [session for session in SESSIONS if three[session] != two[session]]
        assert len(SESSIONS) / 5 < len(moved) < len(SESSIONS) / 2  # a third, and no more than a few among the others
        assert sum(three[session] == urls[2] for session in moved) > 0.9 * len(moved)
        proxy.use(urls[:2])
        until(lambda: urls[2] not in {ask(each) for each in SESSIONS[:50]})
        assert placed(ask) == two


def test_what_has_no_session_is_spread(replicas: list[Replica], tmp_path: Path) -> None:
    with (
        Envoy(tmp_path, [each.url for each in replicas]) as proxy,
        grpc.insecure_channel(proxy.url) as channel,
    ):
        ask = asking(channel)
        assert set(Counter(ask() for _ in range(60))) == {each.url for each in replicas}


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
def test_no_answer_costs_a_replica_its_place(tmp_path: Path, status: grpc.StatusCode) -> None:
    """OVERLOADED is UNAVAILABLE to gRPC. A replica that is left out for it would lose its streams to the others.

    Six, and hundreds of requests for each in a second: enough for Envoy to compare their shares of errors.
    """
    envoy()
    six = [Replica() for _ in range(6)]
    with Envoy(tmp_path, [each.url for each in six]) as proxy, grpc.insecure_channel(proxy.url) as channel:
        call = channel.unary_unary(METHOD)
        before = placed(asking(channel))
        six[0].fails = status
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            answers = {
                session: call.future(b"", metadata=[(SESSION_HEADER, session)], timeout=20) for session in SESSIONS
            }
            for session, answer in answers.items():
                expected = status if before[session] == six[0].url else grpc.StatusCode.OK
                assert answer.code() == expected
        six[0].fails = None
        assert placed(asking(channel)) == before
    for each in six:
        each.stop()


def test_a_replica_that_cannot_be_connected_to_is_left_out(replicas: list[Replica], tmp_path: Path) -> None:
    with (
        Envoy(tmp_path, [each.url for each in replicas]) as proxy,
        grpc.insecure_channel(proxy.url) as channel,
    ):
        ask = asking(channel)
        before = placed(ask)
        replicas[0].stop()
        after = placed(ask)  # without an error: what never reached it is sent to another
        assert {session for session in SESSIONS if after[session] != before[session]} == {
            session for session in SESSIONS if before[session] == replicas[0].url
        }


def test_a_client_that_sends_its_replica_back_stays_there(replicas: list[Replica], tmp_path: Path) -> None:
    urls = [each.url for each in replicas]
    values = MODELS | {"gateway": {"persistenceHeader": PINNED}}
    with Envoy(tmp_path, urls[:2], values) as proxy, grpc.insecure_channel(proxy.url) as channel:
        ask, call = asking(channel), channel.unary_unary(METHOD)
        pins = {}
        for session in SESSIONS:
            url, answer = call.with_call(b"", metadata=[(SESSION_HEADER, session)], timeout=20)
            pins[session] = (bytes(url).decode(), dict(answer.initial_metadata())[PINNED])
        proxy.use(urls)
        until(lambda: urls[2] in {ask(each) for each in SESSIONS[:50]})
        for session, (url, pin) in pins.items():
            assert ask(session, x_guard_replica=pin) == url
