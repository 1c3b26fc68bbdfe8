"""Processes killed in mid-stream: the supervisor starts the server again, and the client replays what was lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from qwen3guard_client import AsyncGuardClient, GuardClient, TokenVerdict
from qwen3guard_contract import errors
from qwen3guard_export import export
from qwen3guard_export.repository import place_models
from qwen3guard_server import canary
from qwen3guard_server.lifecycle import Limits
from qwen3guard_server.processes import model_processes
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.supervisor import Supervisor
from support.command import COMMAND
from support.lengths import times
from support.places import DEMO
from support.processes import children, traces
from support.same_verdicts import PROMPT, TEXT, TIMEOUT_S, same
from support.serving import free_port, serve, stream_repository
from support.texts import cut


class Served:
    """`qwen3guard serve`, and the processes below it by the name of what they run."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.pid = process.pid
        self.url = f"127.0.0.1:{port}"
        self._ready = threading.Semaphore(0)
        assert process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, said: IO[str]) -> None:
        for line in said:
            if line.startswith("ready on "):
                self._ready.release()

    def wait_ready(self) -> None:
        """Until the supervisor has found the server well since the last kill: one that dies three times while it is
        being started is given up."""
        assert self._ready.acquire(timeout=TIMEOUT_S)

    def kill(self, what: str) -> None:
        for pid in children(self.pid):
            with contextlib.suppress(OSError):
                if what in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
                    return


@pytest.fixture
def served(repository: Path, tmp_path: Path) -> Iterator[Served]:
    """The stream guard alone, under its supervisor."""
    port = free_port()
    models = stream_repository(repository, tmp_path / "repository")
    command: list[str | Path] = [COMMAND, "serve", "--model-repository", models, "--grpc-port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        served = Served(process, port)
        served.wait_ready()
        yield served
        process.terminate()
        assert process.stderr is not None
        said = process.stderr.read()
        process.wait(timeout=60)
        print(said)
        assert "Traceback" not in said
        assert not traces(process.pid)


@pytest.mark.trial
def test_a_stream_outlives_killed_processes(served: Served) -> None:
    """Half of the kills fall between two steps, half of them into one."""
    source = random.Random(20)
    pieces = cut(TEXT, source)
    kills = times(3, 20)
    victims = source.sample(range(len(pieces)), kills)
    whats = ["tritonserver", "stream_guard", "stream_tokenizer"]
    with GuardClient(served.url, timeout_s=TIMEOUT_S) as guard:
        with guard.stream(PROMPT) as stream:
            for piece in pieces:
                stream.step(piece)
        undisturbed = stream.verdicts

        with guard.stream(PROMPT) as stream:
            sessions = {stream.session}
            for number, piece in enumerate(pieces):
                killer = None
                if number in victims:
                    what = whats[victims.index(number) % 3]
                    if victims.index(number) % 2:
                        served.kill(what)
                    else:
                        killer = threading.Timer(source.random() * 0.01, served.kill, [what])
                        killer.start()
                stream.step(piece)
                if killer:
                    killer.join()
                if number in victims:
                    served.wait_ready()
                sessions.add(stream.session)
        same(stream.verdicts, undisturbed)
    assert len(sessions) > kills * 2 // 3  # of two kills in a row the first may be noticed with the second


def test_an_async_stream_outlives_its_server(served: Served) -> None:
    async def moderate(kill: bool) -> tuple[TokenVerdict, ...]:
        async with (
            AsyncGuardClient(served.url, timeout_s=TIMEOUT_S) as guard,
            guard.stream(PROMPT) as stream,
        ):
            for number, piece in enumerate(cut(TEXT, random.Random(1))):
                if kill and number in (5, 20):
                    served.kill("tritonserver" if number == 5 else "stream_guard")
                await stream.step(piece)
        return stream.verdicts

    same(asyncio.run(moderate(True)), asyncio.run(moderate(False)))


class Supervised:
    """A supervisor in a thread. `ready` says how often the server became ready."""

    def __init__(self, server: EmbeddedServer, guard: GuardClient, limits: Limits) -> None:
        self.said: list[str] = []
        self.given_up: errors.GuardError | None = None
        self._ready = threading.Semaphore(0)
        self._stop = threading.Event()
        self._supervisor = Supervisor(
            server,
            canary.canaries(guard, server.manifests),
            ready=self._ready.release,
            say=lambda _, text: self.said.append(text),
            limits=limits,
        )
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._supervisor.run(self._stop)
        except errors.GuardError as error:
            self.given_up = error

    def wait_ready(self) -> None:
        assert self._ready.acquire(timeout=TIMEOUT_S), self.said

    def __enter__(self) -> Supervised:
        self.thread.start()
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.thread.join(TIMEOUT_S)

    def starts_again(self) -> list[str]:
        return [line for line in self.said if "Starting it again" in line]


QUICK = Limits(canary_s=0.2, canary_timeout_s=1.0)


def model_process(server: EmbeddedServer, model: str) -> int:
    return model_processes(server.pid)[model]


def test_a_hung_process_is_noticed_and_replaced_though_another_guard_is_overloaded(repository: Path) -> None:
    """It is alive, and Triton says that all is ready; only an answer of its own tells. Gen refuses canaries meanwhile,
    because so many ask it."""
    with (
        serve(repository) as server,
        GuardClient(server.url, wait_for_server=False) as guard,
        Supervised(server, guard, QUICK) as supervised,
        overloaded_gen(server.url) as refused,
    ):
        hung = model_process(server, "stream_guard")
        first = server.pid
        assert refused.wait(TIMEOUT_S)
        os.kill(hung, signal.SIGSTOP)
        supervised.wait_ready()
        assert server.pid != first
        assert len(supervised.starts_again()) == 1
        assert re.search("stream_guard does not (answer|judge)", supervised.starts_again()[0])


def test_a_restart_serves_what_was_exported_meanwhile(repository: Path, tmp_path: Path) -> None:
    """Its canary is another than that of the export before."""
    models = stream_repository(repository, tmp_path)
    exported = export(str(DEMO / "stream"), tmp_path / "new", weights="dq8r", say=lambda _: None)
    place_models(tmp_path / "new", exported)
    with (
        serve(models) as server,
        GuardClient(server.url, wait_for_server=False) as guard,
        Supervised(server, guard, QUICK) as supervised,
    ):
        for name in ("stream_guard", "stream_tokenizer"):
            shutil.copytree(tmp_path / "new" / name / "1", models / name / "1", dirs_exist_ok=True)
        os.kill(model_process(server, "stream_guard"), signal.SIGKILL)
        supervised.wait_ready()
        assert len(supervised.starts_again()) == 1
        assert server.manifests["stream_step"].weights == "dq8r"


@pytest.mark.parametrize("stopped", ["tritonserver", "stream_tokenizer"])
def test_the_process_that_is_stopped_is_the_one_that_is_blamed(repository: Path, tmp_path: Path, stopped: str) -> None:
    with (
        serve(stream_repository(repository, tmp_path / "r")) as server,
        GuardClient(server.url, timeout_s=5, wait_for_server=False) as guard,
        Supervised(server, guard, Limits(canary_s=0.2, canary_timeout_s=5)) as supervised,
    ):
        os.kill(server.pid if stopped == "tritonserver" else model_process(server, stopped), signal.SIGSTOP)
        supervised.wait_ready()
        blamed = "The server" if stopped == "tritonserver" else stopped
        told = [line for line in supervised.said if not line.startswith("still loading")]
        assert all(line.startswith(f"{blamed} does not ") for line in told), told
        assert len(supervised.starts_again()) == 1


@contextlib.contextmanager
def overloaded_gen(url: str) -> Iterator[threading.Event]:
    """More questions for Gen than it takes, one after the other, until this is left. The event: one was refused."""
    refused, stop = threading.Event(), threading.Event()

    def ask() -> None:
        with GuardClient(url, timeout_s=5, wait_for_server=False) as guard:
            while not stop.is_set():
                try:
                    guard.classify("How do I bake bread? " * 40)
                except errors.Overloaded:
                    refused.set()
                except errors.GuardError:
                    stop.wait(0.1)  # it is being started again

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(96)]
    for thread in threads:
        thread.start()
    yield refused
    stop.set()
    for thread in threads:
        thread.join()


def test_processes_killed_while_they_load_are_started_again_and_the_signal_is_told(
    repository: Path, tmp_path: Path
) -> None:
    """Four in a row, of which more than three gave up before."""
    with (
        serve(stream_repository(repository, tmp_path / "r")) as server,
        GuardClient(server.url, wait_for_server=False) as guard,
        Supervised(server, guard, Limits(pause_s=0.1)) as supervised,
    ):
        for number in range(4):
            pid = server.pid
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + TIMEOUT_S
            while len(supervised.starts_again()) <= number or is_same(server, pid):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        supervised.wait_ready()
        told = supervised.starts_again()
        assert sum("was killed by SIGKILL" in line for line in told) >= 4, told
        found = [re.search(r"again in ([\d.]+) s", line) for line in told]
        pauses = [float(each[1]) if each else 0.0 for each in found]
        assert pauses[:3] == [0.0, 0.1, 0.2]
        assert pauses == sorted(pauses)
        with guard.stream(PROMPT) as stream:
            stream.step("Mix flour.")


@pytest.mark.parametrize("again", [False, True], ids=["the first time", "again"])
def test_a_process_that_hangs_while_it_loads_is_replaced(repository: Path, tmp_path: Path, again: bool) -> None:
    models = stream_repository(repository, tmp_path / "r")
    with serve(models) as server, GuardClient(server.url, wait_for_server=False) as guard:
        server.settings = replace(server.settings, idle_load_s=5.0)
        if not again:
            stop_while_loading(server)
        with Supervised(server, guard, Limits(pause_s=0.0)) as supervised:
            if again:
                first = server.pid
                os.kill(first, signal.SIGKILL)
                while is_same(server, first):
                    time.sleep(0.01)
                stop_while_loading(server)
                supervised.wait_ready()
            assert "Its models did nothing for 5 s." in "".join(supervised.starts_again())
            with guard.stream(PROMPT) as stream:
                stream.step("Mix flour.")


def test_a_server_that_is_stopped_while_it_loads_is_not_its_models_fault(repository: Path, tmp_path: Path) -> None:
    with serve(stream_repository(repository, tmp_path / "r")) as server:
        os.kill(server.pid, signal.SIGSTOP)
        server.settings = replace(server.settings, idle_load_s=1.0)
        deadline = time.monotonic() + TIMEOUT_S
        while not (fault := server.fault()):
            server.check_loading(0)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert str(fault) == "The server did nothing for 1 s."
        server.kill()


def stop_while_loading(server: EmbeddedServer) -> None:
    """Stops stream_guard before it has read its graph."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (pid := model_processes(server.pid).get("stream_guard")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(pid, signal.SIGSTOP)


def is_same(server: EmbeddedServer, pid: int) -> bool:
    """Whether no other process has been started since `pid`."""
    try:
        return server.pid == pid
    except errors.ServeError:
        return True


def test_a_server_that_cannot_start_again_is_given_up_with_the_reason(repository: Path, tmp_path: Path) -> None:
    models = stream_repository(repository, tmp_path / "r")
    limits = Limits(pause_s=0.0)
    with (
        serve(models) as server,
        GuardClient(server.url, wait_for_server=False) as guard,
        Supervised(server, guard, limits) as supervised,
    ):
        (models / "stream_guard" / "1" / "model.onnx").unlink()
        os.kill(server.pid, signal.SIGKILL)
        supervised.thread.join(TIMEOUT_S)
        assert isinstance(supervised.given_up, errors.ServeError)
        assert "model.onnx is missing" in str(supervised.given_up)
        assert len(supervised.starts_again()) == limits.refusals, supervised.said


@pytest.mark.parametrize(
    ("file", "end", "reason"),
    [
        ("1/model.py", "\n\nraise OSError(12, 'Cannot allocate memory')\n", "Cannot allocate memory"),
        ("1/model.py", "\n\nimport qwen3guard_former.module\n", "of another version .* export the checkpoint again"),
        ("config.pbtxt", "\ninput [", "stream_guard"),
    ],
)
def test_a_model_that_fails_while_it_loads_is_told_with_what_triton_says(
    repository: Path, tmp_path: Path, file: str, end: str, reason: str
) -> None:
    """The error is none of ours, as where a limit of the system's refuses memory."""
    models = stream_repository(repository, tmp_path / "r")
    with (models / "stream_guard" / file).open("a") as opened:
        opened.write(end)
    with serve(models) as server, pytest.raises(errors.ServeError, match=reason):
        server.wait_ready(lambda: False)


def test_a_server_that_never_answered_is_not_waited_for() -> None:
    with (
        GuardClient(f"127.0.0.1:{free_port()}", timeout_s=TIMEOUT_S) as nobody,
        pytest.raises(errors.Unreachable),
        nobody.stream(PROMPT),
    ):
        pass
