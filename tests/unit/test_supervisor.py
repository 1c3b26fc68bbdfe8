"""What the supervisor does with a server, here one without processes."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from qwen3guard_contract.errors import CanaryFailed, DeadlineExceeded, GuardError, Overloaded, PortBusy, ServeError
from qwen3guard_server.lifecycle import Limits
from qwen3guard_server.server import Fault
from qwen3guard_server.supervisor import Supervisor

PATIENCE_S = 30.0
LIMITS = Limits(canary_s=0.01, canary_timeout_s=5, again_s=0.01, pause_s=0.0, restarts=4)


class Server:
    """Notes what is done to it. `fails` is called at each restart, and may raise."""

    def __init__(self) -> None:
        self.log = ""
        self.done: list[str] = []
        self.found: Fault | None = None
        self.stopped = False
        self.listening = True
        self.unseen = 0
        """How often the server cannot be looked at, for `lack`."""
        self.lack: Exception = OSError(errno.EMFILE, "Too many open files")
        self.fails: Callable[[], None] = lambda: None

    def fault(self) -> Fault | None:
        if self.unseen:
            self.unseen -= 1
            raise self.lack
        return self.found

    def listens(self) -> bool:
        return self.listening

    def is_stopped(self) -> bool:
        return self.stopped

    def keep_clearer(self) -> bool:
        return False

    def check_loading(self, loading_s: float) -> None:
        pass

    def loaded(self) -> None:
        self.done.append("loaded")

    def kill(self) -> None:
        self.done.append("kill")

    def restart(self) -> None:
        self.done.append("restart")
        self.found = None
        self.fails()

    def load_error(self, fault: Fault) -> ServeError:
        return ServeError(f"While it was loading: {fault}")


class Watched:
    """A supervisor in a thread, and how often the server became ready."""

    def __init__(self, server: Server, **canaries: Callable[[float], bool]) -> None:
        self.said: list[str] = []
        self.given_up: GuardError | None = None
        self.ready = threading.Semaphore(0)
        self._stop = threading.Event()
        self._supervisor = Supervisor(
            cast(Any, server),
            canaries,
            ready=self.ready.release,
            say=lambda _, text: self.said.append(text),
            limits=LIMITS,
        )
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._supervisor.run(self._stop)
        except GuardError as error:
            self.given_up = error

    def becomes_ready(self) -> None:
        assert self.ready.acquire(timeout=PATIENCE_S), (self.said, self.given_up)

    def ends(self) -> GuardError | None:
        self.thread.join(PATIENCE_S)
        return self.given_up

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def watched(server: Server, **canaries: Callable[[float], bool]) -> Iterator[Watched]:
    supervised = Watched(server, **canaries)
    supervised.thread.start()
    try:
        yield supervised
    finally:
        supervised.stop()
        supervised.thread.join(PATIENCE_S)


def well(_: float) -> bool:
    return True


def busy(_: float) -> bool:
    raise Overloaded("The server is overloaded; try again later.")


class Sometimes:
    """A canary that can be told to fail with an error, or to be silent until it is released."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = threading.Event()
        self.released = threading.Event()

    def __call__(self, _: float) -> bool:
        if self.error:
            raise self.error
        if self.hangs.is_set():
            self.released.wait(PATIENCE_S)
            return False
        return True


def test_a_busy_model_does_not_hide_another_that_fails() -> None:
    server, stream = Server(), Sometimes()
    server.fails = lambda: setattr(stream, "error", None)
    with watched(server, gen_guard=busy, stream_guard=stream) as supervised:
        supervised.becomes_ready()
        stream.error = TimeoutError()
        supervised.becomes_ready()
    assert server.done == ["loaded", "kill", "restart", "loaded"]
    assert "stream_guard does not answer. Starting it again." in supervised.said


@pytest.mark.parametrize(("stopped", "silent"), [(True, "The server"), (False, "gen_guard")])
def test_the_silence_of_a_server_that_is_stopped_is_not_its_models(stopped: bool, silent: str) -> None:
    server, gen = Server(), Sometimes()
    server.fails = lambda: setattr(gen, "error", None)
    with watched(server, gen_guard=gen) as supervised:
        supervised.becomes_ready()
        server.stopped, gen.error = stopped, DeadlineExceeded("No answer in time.")
        supervised.becomes_ready()
    assert supervised.said == [
        f"{silent} does not answer; asking it again",
        f"{silent} does not answer. Starting it again.",
    ]


def test_a_silent_model_does_not_keep_another_from_being_asked() -> None:
    server, gen, stream = Server(), Sometimes(), Sometimes()
    server.fails = lambda: setattr(stream, "error", None)
    with watched(server, gen_guard=gen, stream_guard=stream) as supervised:
        supervised.becomes_ready()
        gen.hangs.set()
        stream.error = CanaryFailed("The stream guard answers its canary wrongly.")
        assert waits(lambda: "kill" in server.done)
        gen.hangs.clear()
        gen.released.set()
        supervised.becomes_ready()
    assert supervised.said[0] == "The stream guard answers its canary wrongly. Starting it again."


def waits(condition: Callable[[], bool]) -> bool:
    """Whether it comes true."""
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return True
        pause.wait(0.01)
    return False


def test_a_fault_is_noticed_while_a_canary_hangs_in_loading() -> None:
    server, gen = Server(), Sometimes()
    gen.hangs.set()
    with watched(server, gen_guard=gen) as supervised:
        server.found = Fault("The process of gen_guard was killed by SIGKILL.", interrupted=True)
        assert waits(lambda: "kill" in server.done)
        gen.hangs.clear()
        gen.released.set()
        supervised.becomes_ready()
    assert supervised.said == [
        "While it was loading: The process of gen_guard was killed by SIGKILL. Starting it again."
    ]


def test_what_cannot_be_started_again_is_tried_until_it_is_given_up() -> None:
    def fails() -> None:
        raise PortBusy("Port 8001 on 127.0.0.1 cannot be used.")

    server = Server()
    server.fails = fails
    with watched(server, gen_guard=well) as supervised:
        supervised.becomes_ready()
        server.found = Fault("The server was killed by SIGSEGV.", interrupted=True)
        error = supervised.ends()
    assert server.done.count("restart") == LIMITS.restarts - 1
    assert "failed 4 times in 15 min: Port 8001" in str(error)
    assert supervised.said[0] == "The server was killed by SIGSEGV. Starting it again."


def test_another_server_at_its_port_does_not_make_a_server_ready() -> None:
    """Two that are started at once both find the port free."""
    server = Server()
    server.listening = False
    with watched(server, gen_guard=well) as supervised:
        assert not supervised.ready.acquire(timeout=0.5)
        server.found = Fault("Address already in use")
        error = supervised.ends()
    assert str(error) == "While it was loading: Address already in use"
    assert server.done == ["kill"]


def test_a_first_start_that_comes_to_nothing_is_given_up_at_once_with_its_reason() -> None:
    server = Server()
    server.found = Fault("model.onnx is missing.")
    with watched(server, gen_guard=well) as supervised:
        error = supervised.ends()
    assert str(error) == "While it was loading: model.onnx is missing."
    assert "restart" not in server.done


@pytest.mark.parametrize("error", [OSError(), ValueError("a bug")], ids=["system", "bug"])
def test_a_canary_that_fails_by_itself_ends_nothing(error: Exception) -> None:
    server, gen = Server(), Sometimes()
    server.fails = lambda: setattr(gen, "error", None)
    with watched(server, gen_guard=gen) as supervised:
        supervised.becomes_ready()
        gen.error = error
        supervised.becomes_ready()
    assert f"gen_guard could not be asked ({type(error).__name__})" in supervised.said


@pytest.mark.parametrize("lack", [RuntimeError("can't start new thread"), MemoryError()], ids=["threads", "memory"])
def test_a_model_is_not_ended_for_what_its_watcher_lacks(lack: Exception) -> None:
    server, gen = Server(), Sometimes()
    gen.error = lack
    told = f"gen_guard could not be asked ({type(lack).__name__})"
    with watched(server, gen_guard=gen) as supervised:
        assert waits(lambda: told in supervised.said)
        gen.error = None
        supervised.becomes_ready()
        gen.error = lack
        assert waits(lambda: supervised.said.count(told) > 4)
    assert server.done == ["loaded"]


@pytest.mark.parametrize(
    ("lack", "why"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (MemoryError(), "MemoryError"),
    ],
    ids=["files", "threads", "memory"],
)
def test_a_server_that_cannot_be_looked_at_is_left_alone(lack: Exception, why: str) -> None:
    server = Server()
    server.lack = lack
    with watched(server, gen=well) as supervised:
        supervised.becomes_ready()
        server.unseen = 3
        deadline = time.monotonic() + PATIENCE_S
        while server.unseen:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.found = Fault("The server was killed by SIGKILL.", interrupted=True)
        supervised.becomes_ready()
    told = [line for line in supervised.said if "cannot be watched" in line]
    assert told == [f"the server cannot be watched ({why})"]
    assert server.done == ["loaded", "kill", "restart", "loaded"]
