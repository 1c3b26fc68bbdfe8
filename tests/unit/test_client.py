"""What the client shows, what it refuses before anything is sent, and how it reaches its server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import subprocess
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import numpy as np
import pytest
import qwen3guard_client
from qwen3guard_client import (
    AsyncGuardClient,
    AsyncModeration,
    Category,
    GuardClient,
    Moderation,
    Policy,
    Segment,
    Thresholds,
    Tls,
)
from qwen3guard_client.moderation.flow import Flow
from qwen3guard_client.stream.state import StreamState
from qwen3guard_client.transport import calls
from qwen3guard_client.transport.address import is_local
from qwen3guard_contract import errors, wire
from support.fake_guard import MESSAGES, FakeGuard, Script

NOBODY = "127.0.0.1:9"
"""No server listens here: what is sent is Unreachable."""
WITH_TRANSPORT = {"AsyncGuardClient", "AsyncModeration", "AsyncStream", "GuardClient", "Moderation", "Stream"}


def test_the_public_names() -> None:
    for name in qwen3guard_client.__all__:
        assert hasattr(qwen3guard_client, name)
    assert qwen3guard_client.__all__ == sorted(qwen3guard_client.__all__)


def test_a_label_a_verdict_or_an_error_loads_no_transport() -> None:
    program = """
import json, sys, qwen3guard_client
loaded = {}
for name in json.loads(sys.argv[1]):
    getattr(qwen3guard_client, name)
    loaded[name] = [each for each in ("grpc", "tritonclient") if each in sys.modules]
print(json.dumps(loaded))
"""
    pure = [name for name in qwen3guard_client.__all__ if name not in WITH_TRANSPORT]
    ran = subprocess.run([sys.executable, "-c", program, json.dumps(pure)], capture_output=True, check=True)
    assert {name: found for name, found in json.loads(ran.stdout).items() if found} == {}


def test_the_types_of_public_results_are_public() -> None:
    def named(hint: object) -> Iterator[type]:
        if isinstance(hint, type):
            yield hint
        for argument in typing.get_args(hint):
            yield from named(argument)

    public = [getattr(qwen3guard_client, name) for name in qwen3guard_client.__all__]
    reached = {
        each
        for result in public
        if isinstance(result, type)
        for hint in (
            *(typing.get_type_hints(result).values() if dataclasses.is_dataclass(result) else ()),
            *(
                typing.get_type_hints(found.fget).get("return")
                for found in vars(result).values()
                if isinstance(found, property) and found.fget and not found.fget.__name__.startswith("_")
            ),
        )
        for each in named(hint)
        if dataclasses.is_dataclass(each) or issubclass(each, Enum)
    }
    assert qwen3guard_client.AnswerStatus in reached
    assert {each.__name__ for each in reached} - set(qwen3guard_client.__all__) == set()


NOT_INTEGERS: dict[str, Any] = {
    "floats": [1.7],
    "whole floats": [1.0, 2.0],
    "a float among integers": [1, 2.0],
    "bools": [True],
    "a bool among integers": [1, True],
    "a numpy bool": [np.True_],
    "strings": ["12"],
    "a missing id": [1, None],
    "lists": [[1, 2]],
    "an array of floats": np.array([1.0, 2.0]),
    "an array of bools": np.array([True, False]),
    "an array of strings": np.array(["12"]),
    "an array of objects": np.array([1, "2"], object),
    "a duration": np.array([5], "m8[s]"),
    "a table": np.array([[1, 2]]),
}
INTEGERS: dict[str, Any] = {
    "a list": [5, 7],
    "a tuple": (5, 7),
    "a range": range(5, 9, 2),
    "numpy integers": [np.int64(5), np.uint8(7)],
    "an array": np.array([5, 7], np.uint16),
}


POSITION: Any = np.int32(3)


def moderated(guard: FakeGuard, source: Any, *, in_tasks: bool = False) -> list[Segment]:
    flow = Flow("after_check", "stop")
    if not in_tasks:
        return list(Moderation(guard.stream(), source, flow, guard.send))

    async def collect() -> list[Segment]:
        moderation = AsyncModeration(guard.async_stream(), source, flow, guard.asend)
        return [segment async for segment in moderation]

    return asyncio.run(collect())


@pytest.mark.parametrize("name", NOT_INTEGERS)
def test_token_ids_are_integers_or_refused(name: str) -> None:
    ids, guard = NOT_INTEGERS[name], FakeGuard(Script((("ab", False),)))
    with pytest.raises(errors.InvalidRequest, match="The token ids must be integers"):
        calls.stream_step("s", token_ids=ids)
    with guard.stream() as stream, pytest.raises(errors.InvalidRequest, match="The token ids must be integers"):
        stream.step(ids)
    for in_tasks in (False, True):
        with pytest.raises(errors.InvalidRequest, match="The token ids must be integers"):
            moderated(FakeGuard(Script(())), [ids], in_tasks=in_tasks)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_of_every_kind_are_token_ids(name: str) -> None:
    sent = calls.stream_step("s", token_ids=INTEGERS[name], position=POSITION).values
    assert sent[wire.INPUT_IDS].tolist() == [5, 7]
    assert sent[wire.POSITION] == [3]


def test_no_ids_and_ids_beyond_64_bits() -> None:
    nothing: tuple[Any, ...] = ([], (), np.array([]))
    for ids in nothing:
        assert calls.stream_step("s", token_ids=ids).values[wire.TOKEN_IDS].size == 0
    beyond: tuple[Any, ...] = ([2**63], [-(2**70)], np.array([2**64 - 1], np.uint64))
    for ids in beyond:
        with pytest.raises(errors.TokenOutOfRange):
            calls.stream_step("s", token_ids=ids)


@pytest.mark.parametrize("piece", [None, 5, 1.5, b"ab", bytearray(b"ab"), {"a": 1}, {1, 2}, object()])
def test_a_piece_is_text_or_token_ids(piece: Any) -> None:
    guard = FakeGuard(Script((("ab", False),)))
    with guard.stream() as stream:
        with pytest.raises(errors.InvalidRequest, match="text or as token ids, not as"):
            stream.step(piece)
        assert stream.step("ab").length > 0
    if piece is not None:
        for in_tasks in (False, True):
            with pytest.raises(errors.InvalidRequest, match="text or as token ids, not as"):
                moderated(FakeGuard(Script(())), ["ab", piece], in_tasks=in_tasks)


@pytest.mark.parametrize("in_tasks", [False, True])
def test_pieces_without_content_are_skipped(in_tasks: bool) -> None:
    """As the first and the last delta of OpenAI's API."""
    guard = FakeGuard(Script((("ab", False), ("cd", False))))
    shown = moderated(guard, [None, "ab", "", None, "cd", None, []], in_tasks=in_tasks)
    assert "".join(map(str, shown)) == "abcd"


WRONG: dict[str, Callable[[Any], Any]] = {
    "a prompt of bytes": lambda g: g.classify(b"Hi."),
    "a prompt of a number": lambda g: g.classify(5),
    "a response of bytes": lambda g: g.classify("Hi.", b"Hello."),
    "messages of a number": lambda g: g.classify(messages=5),
    "messages of a dict": lambda g: g.classify(messages={"role": "user", "content": "Hi."}),
    "messages of bytes": lambda g: g.classify(messages=b"[]"),
    "messages of objects": lambda g: g.classify(messages=[object()]),
    "messages in a generator": lambda g: g.classify(messages=iter([])),
    "a surrogate": lambda g: g.classify("\ud800"),
    "a timeout that is NaN": lambda g: g.classify("Hi.", timeout_s=float("nan")),
    "a timeout without end": lambda g: g.classify("Hi.", timeout_s=float("inf")),
    "a timeout in a string": lambda g: g.classify("Hi.", timeout_s="3"),
    "a negative timeout": lambda g: g.classify("Hi.", timeout_s=-1),
    "a timeout beyond clocks": lambda g: g.classify("Hi.", timeout_s=1e30),
    "a timeout beyond floats": lambda g: g.classify("Hi.", timeout_s=10**400),
    "a bool for a timeout": lambda g: g.classify("Hi.", timeout_s=True),
    "a position beyond 64 bits": lambda g: g.stream_step("s", text="x", position=2**70),
    "a position in a string": lambda g: g.stream_step("s", text="x", position="x"),
    "a position between tokens": lambda g: g.stream_step("s", text="x", position=1.7),
    "a bool for a position": lambda g: g.stream_step("s", text="x", position=True),
    "no position": lambda g: g.stream_step("s", text="x", position=None),
    "text of bytes": lambda g: g.stream_step("s", text=b"x"),
    "ids of a number": lambda g: g.stream_step("s", token_ids=5),
    "ids of a string": lambda g: g.stream_step("s", token_ids="12"),
    "ids of bytes": lambda g: g.stream_step("s", token_ids=b"12"),
    "a session that is no text": lambda g: g.stream_step("\ud800", text="x"),
    "a session beyond 64 bits": lambda g: g.stream_step(2**80, text="x"),
    "a session of 129 bytes": lambda g: g.stream_step("é" * 64 + "x", text="x"),
    "a session that Triton would cut": lambda g: g.stream_step("a\0b", text="x"),
    "a session with an escape": lambda g: g.stream_step("a\x1b[2J", text="x"),
    "a session of two lines": lambda g: g.stream_step("a\nb", text="x"),
    "a session with a control of Latin-1": lambda g: g.stream_step("a\x9b", text="x"),
    "a request id that Triton would cut": lambda _: dataclasses.replace(calls.classify("Hi.", None, None), id="a\0b"),
    "a request id of two lines": lambda _: dataclasses.replace(calls.classify("Hi.", None, None), id="a\nb"),
    "a negative session": lambda g: g.stream_step(-1, text="x"),
    "a session without a name": lambda g: g.stream_step("", text="x"),
    "session 0": lambda g: g.stream_step(0, text="x"),
    "no session": lambda g: g.stream_step(None, text="x"),
    "a session of bytes": lambda g: g.stream_step(b"s", text="x"),
    "a session of a float": lambda g: g.stream_step(1.0, text="x"),
    "a bool for a session": lambda g: g.stream_step(True, text="x"),
    "start in a string": lambda g: g.stream_step("s", prompt="x", start="yes"),
    "end of a number": lambda g: g.stream_step("s", text="x", end=1),
    "a policy in a dict": lambda g: g.stream_step("s", prompt="x", start=True, policy={"strict": True}),
    "a step's timeout": lambda g: g.stream_step("s", text="x", timeout_s=float("nan")),
    "a stream's timeout": lambda g: g.stream("Hi.", timeout_s=-1.0),
    "a stream's mode": lambda g: g.stream("Hi.").flagged(strict="loose"),
    "a moderation's timeout": lambda g: g.moderate(["x"], "Hi.", timeout_s="3"),
    "a source of nothing": lambda g: g.moderate(None, "Hi."),
    "a source of a number": lambda g: g.moderate(5, "Hi."),
    "an unknown release": lambda g: g.moderate(["x"], "Hi.", release="sometimes"),
    "a release in a list": lambda g: g.moderate(["x"], "Hi.", release=["after_check"]),
    "an unknown reaction": lambda g: g.moderate(["x"], "Hi.", on_flag=None),
    "an unknown mode": lambda g: g.moderate(["x"], "Hi.", confirm=True),
    "an empty mode": lambda g: g.moderate(["x"], "Hi.", confirm=""),
    "a model of a number": lambda g: g.is_ready(5),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_before_anything_is_sent(name: str) -> None:
    with GuardClient(NOBODY) as guard, pytest.raises(errors.InputError):
        WRONG[name](guard)

    async def ask() -> None:
        async with AsyncGuardClient(NOBODY) as guard:
            asked = WRONG[name](guard)
            await asked

    with pytest.raises(errors.InputError):
        asyncio.run(ask())


OPENS_WRONG: dict[str, dict[str, Any]] = {
    "a policy in a dict": {"prompt": "Hi.", "policy": {"strict": True}},
    "a prompt of bytes": {"prompt": b"Hi."},
    "messages of a number": {"messages": 5},
    "neither": {},
}


@pytest.mark.parametrize("name", OPENS_WRONG)
def test_a_stream_and_a_moderation_of_wrong_arguments(name: str) -> None:
    async def moderate() -> None:
        async with AsyncGuardClient(NOBODY) as guard:
            async for _ in guard.moderate(["x"], **OPENS_WRONG[name]):
                pass

    async def stream() -> None:
        async with AsyncGuardClient(NOBODY) as guard, guard.stream(**OPENS_WRONG[name]):
            pass

    with GuardClient(NOBODY) as guard:
        with pytest.raises(errors.InputError):
            list(guard.moderate(["x"], **OPENS_WRONG[name]))
        with pytest.raises(errors.InputError), guard.stream(**OPENS_WRONG[name]):
            pass
    for run in (moderate, stream):
        with pytest.raises(errors.InputError):
            asyncio.run(run())


@pytest.mark.parametrize("kind", [GuardClient, AsyncGuardClient])
@pytest.mark.parametrize(
    "arguments",
    [
        {"url": None},
        {"url": 8001},
        {"url": b"127.0.0.1:8001"},
        {"url": ""},
        {"url": "\ud800:8001"},
        {"url": "a\0b:8001"},
        {"timeout_s": float("nan")},
        {"timeout_s": "30"},
        {"timeout_s": None},
        {"wait_for_server": "no"},
        {"tls": True},
        {"tls": "ca.pem"},
        {"token": 5},
        {"token": b"0123456789abcdef"},
        {"token": "short"},
    ],
    ids=str,
)
def test_wrong_arguments_of_a_client(kind: Callable[..., object], arguments: dict[str, Any]) -> None:
    with pytest.raises((errors.InvalidRequest, errors.InvalidEncoding, errors.InvalidCredentials)):
        kind(**{"url": NOBODY, **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"ca": 5},
        {"ca": b"ca.pem"},
        {"ca": "a\0b"},
        {"ca": ""},
        {"cert": "", "key": ""},
        {"server_name": 5},
        {"server_name": ""},
    ],
    ids=str,
)
def test_wrong_arguments_of_tls(arguments: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidCredentials):
        Tls(**arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Policy(debounce=2**70),
        lambda: Policy(debounce=32_769),
        lambda: Policy(debounce=0),
        lambda: Policy(blocked=frozenset()),
        lambda: Policy(blocked=()),  # type: ignore[arg-type]
        lambda: Policy(debounce=-(10**5000)),
        lambda: Policy(debounce=1.5),  # type: ignore[arg-type]
        lambda: Policy(debounce=True),
        lambda: Policy(strict="strict"),  # type: ignore[arg-type]
        lambda: Policy(strict=None),  # type: ignore[arg-type]
        lambda: Policy(blocked="Violent"),  # type: ignore[arg-type]
        lambda: Policy(thresholds=0.5),  # type: ignore[arg-type]
        lambda: Thresholds(categories=5),  # type: ignore[arg-type]
        lambda: Thresholds(categories={"Violent": 0.5}),  # type: ignore[dict-item]
        lambda: Thresholds(categories={Category.PII: float("nan")}),
    ],
)
def test_wrong_policies_are_refused_where_they_are_made(wrong: Callable[[], object]) -> None:
    with pytest.raises(errors.InvalidRequest):
        wrong()
    assert Policy(debounce=32_768).debounce == 32_768


def test_a_client_that_is_closed_says_so() -> None:
    guard = GuardClient(NOBODY)
    guard.close()
    for ask in (lambda: guard.classify("Hi."), lambda: guard.is_ready("classify")):
        with pytest.raises(errors.InvalidRequest, match="The client is closed"):
            ask()

    async def ask_later() -> None:
        client = AsyncGuardClient(NOBODY)
        await client.close()
        await client.close()
        with pytest.raises(errors.InvalidRequest, match="The client is closed"):
            await client.classify("Hi.")

    asyncio.run(ask_later())


def test_closing_a_client_ends_its_requests_with_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and never answers."""
    monkeypatch.setattr("qwen3guard_client.transport.tasks.CLOSE_S", 0.1)

    async def ask() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client = AsyncGuardClient(f"127.0.0.1:{silent.getsockname()[1]}")
            asked = asyncio.create_task(client.classify("Hi.", timeout_s=30))
            moderated = asyncio.ensure_future(anext(aiter(client.moderate(["Hello."], "Hi.", timeout_s=30))))
            await asyncio.sleep(0.2)
            await client.close()
            async with asyncio.timeout(10):
                for each in (asked, moderated):
                    with pytest.raises(errors.GuardError):
                        await each

    asyncio.run(ask())


def test_an_async_client_connects_in_the_loop_that_runs() -> None:
    """It may be made outside any loop, and be used in one loop after another."""
    client = AsyncGuardClient(NOBODY, timeout_s=5)

    async def ask() -> int:
        for _ in range(2):
            with pytest.raises(errors.Unreachable):
                await client.classify("Hi.")
            assert not await client.is_ready("classify")
        return len(client._in_flight._clients)

    assert [asyncio.run(ask()) for _ in range(3)] == [1, 1, 1]
    asyncio.run(client.close())


class FakeProxy:
    """An HTTP proxy that refuses every request, and keeps its first line."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(1000).partition(b"\r\n")[0])
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProxy]:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeProxy()
    yield fake
    fake.close()


def why(url: str, *, in_tasks: bool) -> str:
    async def ask_in_task() -> None:
        async with AsyncGuardClient(url, timeout_s=5) as client:
            await client.classify("Hi.")

    def ask() -> None:
        with GuardClient(url, timeout_s=5) as client:
            client.classify("Hi.")

    with pytest.raises(errors.Unreachable) as caught:
        asyncio.run(ask_in_task()) if in_tasks else ask()
    return str(caught.value)


@pytest.mark.parametrize("in_tasks", [False, True])
@pytest.mark.parametrize("url", [NOBODY, "localhost:9", "[::1]:9", "dns:///localhost:9", "ipv4:127.0.0.1:9"])
def test_a_server_of_this_machine_is_not_sought_behind_a_proxy(
    proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch, url: str, in_tasks: bool
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    assert "proxy" not in why(url, in_tasks=in_tasks)
    assert proxy.asked == []


@pytest.mark.parametrize("in_tasks", [False, True])
@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_a_server_behind_a_proxy_that_fails_is_told_so(
    proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch, variable: str, in_tasks: bool
) -> None:
    monkeypatch.setenv(variable, proxy.url)
    assert why("guard.example:8001", in_tasks=in_tasks).endswith(f"; gRPC uses the proxy of the variable {variable}.")
    assert proxy.asked == [b"CONNECT guard.example:8001 HTTP/1.1"]


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("127.8.0.1:8001", True),
        ("::1", True),
        ("ipv6:[::1]:8001", True),
        ("LOCALHOST", True),
        ("unix:/run/guard.sock", True),
        ("10.0.0.1:8001", False),
        ("localhost.example:8001", False),
        ("127.0.0.1.example:8001", False),
        ("[2001:db8::1]:8001", False),
        ("nonsense:a:b", False),
    ],
)
def test_which_servers_are_of_this_machine(url: str, local: bool) -> None:
    assert is_local(url) == local


def test_a_stream_has_all_its_state_from_the_beginning() -> None:
    state = StreamState(None, MESSAGES, None)
    before = set(vars(state))
    with pytest.raises(errors.InvalidRequest, match="The stream is not open"):
        next(state.finish())
    guard = FakeGuard(Script((("ab", False),)))
    with guard.stream() as stream:
        stream.step("ab")
    assert set(vars(stream._state)) == before


def test_a_reply_that_cannot_be_read_is_an_error_of_the_server() -> None:
    class Nonsense:
        def as_numpy(self, _: str) -> Any:
            return np.array([[b"Nonsense"]], object)

    with pytest.raises(errors.InternalError, match="cannot be read"):
        calls.classify("Hi.", None, None).result(Nonsense())


@pytest.mark.parametrize(
    ("scope", "error"), [("\ud800", errors.InvalidEncoding), ("a\0", errors.InvalidRequest), (5, errors.InvalidRequest)]
)
def test_a_scope_that_cannot_be_sent(scope: Any, error: type[errors.GuardError]) -> None:
    with pytest.raises(error, match="scope"):
        GuardClient(scope=scope)
    with GuardClient() as guard, pytest.raises(error, match="scope"):
        guard.in_scope(scope)


def test_a_policy_blocks_what_it_was_made_with() -> None:
    blocked = [Category.VIOLENT]
    policy = Policy(blocked=blocked)  # type: ignore[arg-type]
    blocked.clear()
    assert policy.blocked == {Category.VIOLENT}
