"""Processes killed in mid-stream: the supervisor starts the server again, and the client replays what was lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from qwen3guard_client import AsyncGuardClient, GuardClient, TokenVerdict
from qwen3guard_contract import errors
from qwen3guard_server import canary, supervisor
from support.command import COMMAND
from support.lengths import times
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


class SecondStartError(Exception):
    pass


def test_a_hung_process_is_noticed_and_replaced(repository: Path, tmp_path: Path) -> None:
    """It is alive, and Triton says that all is ready; only an answer tells."""
    said: list[str] = []
    with (
        serve(stream_repository(repository, tmp_path / "r")) as server,
        GuardClient(server.url, wait_for_server=False) as guard,
    ):
        starts = []

        def ready() -> None:
            starts.append(server.pid)
            if len(starts) > 1:
                raise SecondStartError
            hung = next(
                pid for pid in children(server.pid) if "stream_guard" in Path(f"/proc/{pid}/cmdline").read_text()
            )
            os.kill(hung, signal.SIGSTOP)

        with pytest.raises(SecondStartError):
            supervisor.supervise(
                server,
                lambda timeout_s: canary.check(guard, server.manifests, timeout_s),
                ready=ready,
                say=said.append,
                canary_s=0.2,
                canary_timeout_s=1.0,
            )
        assert starts[0] != starts[1]
        assert len([line for line in said if line.endswith("; starting it again")]) == 1
        with guard.stream(PROMPT) as stream:
            stream.step("Mix flour.")


def test_a_server_that_cannot_start_again_is_given_up_with_the_reason(repository: Path, tmp_path: Path) -> None:
    models = stream_repository(repository, tmp_path / "r")
    said: list[str] = []
    with serve(models) as server, GuardClient(server.url, wait_for_server=False) as guard:

        def ready() -> None:
            (models / "stream_guard" / "1" / "model.onnx").unlink()
            os.kill(server.pid, signal.SIGKILL)

        with pytest.raises(errors.ServeError, match=r"model\.onnx is missing"):
            supervisor.supervise(
                server,
                lambda timeout_s: canary.check(guard, server.manifests, timeout_s),
                ready=ready,
                say=said.append,
            )
    assert len([line for line in said if line.endswith("starting it again")]) == supervisor.START_ATTEMPTS


def test_a_server_that_never_answered_is_not_waited_for() -> None:
    with (
        GuardClient(f"127.0.0.1:{free_port()}", timeout_s=TIMEOUT_S) as nobody,
        pytest.raises(errors.Unreachable),
        nobody.stream(PROMPT),
    ):
        pass
