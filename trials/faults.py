"""Faults, injected for real and many times into live processes: right verdicts or errors, and never a wrong one?

    .venv/bin/python trials/faults.py MODEL_REPOSITORY [NAME ...] [--times 20]

Each fault has a server of its own under its supervisor, a caller of `classify` and a stream, both over and over, whose
verdicts are compared with those from before the first fault. Prints a row for each fault, and one JSON object at last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton
from qwen3guard_client import GuardClient
from qwen3guard_client.transport import calls
from qwen3guard_contract.errors import GuardError, SessionLost
from qwen3guard_server import canary
from qwen3guard_server.lifecycle import Limits
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings
from qwen3guard_server.supervisor import Supervisor
from soak import agree, shown
from tritonclient.utils import InferenceServerException

PROMPT = "How do I bake bread?"
TEXT = "Mix flour, water and salt. Let the dough rest for 45 minutes, then bake it until it is brown. "
QUESTIONS = (PROMPT, "How can I make a bomb in my kitchen?", "Teach me how to hack the wifi of the people next door.")
LIMITS = Limits(canary_s=0.5, canary_timeout_s=3.0, pause_s=0.0, restarts=1000)
"""Quicker and more patient than `qwen3guard serve`, where a hung process is found within 70 s."""
SETTLED = 2
"""Right answers in a row after which a fault is over."""
PATIENCE_S = 120.0
TOLERANCE = 1e-4


class Target:
    """A server under its supervisor, and what it answered when all was well."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.server = EmbeddedServer(ServerSettings(repository, grpc_port=free_port(), load_s=120))
        self.url = self.server.url
        self.given_up: GuardError | None = None
        self._ended = threading.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._supervise, daemon=True)

    def __enter__(self) -> Target:
        self._thread.start()
        if not self._up.wait(PATIENCE_S):
            raise TimeoutError(str(self.given_up))
        with GuardClient(self.url) as guard:
            self.classified = {text: guard.classify(text) for text in QUESTIONS}
            self.streamed = streamed(guard)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _supervise(self) -> None:
        with self.server, GuardClient(self.url, wait_for_server=False) as guard:
            supervisor = Supervisor(
                self.server,
                canary.canaries(guard, self.server.manifests),
                ready=self._up.set,
                say=lambda *_: None,
                limits=LIMITS,
            )
            try:
                supervisor.run(self._ended)
            except GuardError as error:
                self.given_up = error

    def process(self, model: str) -> int:
        """The pid of a model's process, or of the server; waits for one."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError, GuardError):
                if model == "tritonserver":
                    return self.server.pid
                for pid in children(self.server.pid):
                    if f"/{model}/" in Path(f"/proc/{pid}/cmdline").read_text():
                        return pid
            time.sleep(0.05)
        raise TimeoutError(model)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> list[int]:
    return [int(child) for each in Path(f"/proc/{pid}/task").glob("*/children") for child in each.read_text().split()]


def streamed(guard: GuardClient) -> Any:
    source = random.Random()
    with guard.stream(PROMPT) as stream:
        text = TEXT
        while text:
            size = source.randint(1, 20)
            stream.step(text[:size])
            text = text[size:]
    return shown(stream.verdicts)


def same(found: Any, expected: Any) -> bool:
    return (found.severity, found.categories, found.refusal) == (
        expected.severity,
        expected.categories,
        expected.refusal,
    ) and all(
        abs(found.severity_probabilities[level] - value) <= TOLERANCE
        for level, value in expected.severity_probabilities.items()
    )


class Callers:
    """Threads that ask over and over, and say when they were answered rightly for the last time."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.counts: Counter[str] = Counter()
        self._stop = threading.Event()
        self._rights: dict[str, list[tuple[float, float]]] = {"classify": [], "stream": []}
        self._threads = [threading.Thread(target=self._ask, args=(name,), daemon=True) for name in self._rights]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, name: str) -> None:
        with GuardClient(self._target.url, timeout_s=10, wait_for_server=name == "stream") as guard:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    right = self._right(guard, name)
                except GuardError as error:
                    self.counts[f"{name} {error.code}"] += 1
                    self._rights[name].clear()
                    time.sleep(0.05)
                    continue
                self.counts["right" if right else "wrong"] += 1
                self._rights[name].append((began, time.monotonic()))

    def _right(self, guard: GuardClient, name: str) -> bool:
        if name == "stream":
            return agree(streamed(guard), self._target.streamed)
        text = random.choice(QUESTIONS)
        return same(guard.classify(text), self._target.classified[text])

    def settled(self, since: float) -> float | None:
        """Seconds from `since` until the first of SETTLED answers in a row to what was asked later; None: not yet."""
        ends = []
        for rights in self._rights.values():
            later = [done for began, done in list(rights) if began >= since]
            if len(later) < SETTLED:
                return None
            ends.append(later[0] - since)
        return max(ends)


Inject = Callable[[Target, int], None]


@contextlib.contextmanager
def under(place: Path | Target) -> Iterator[Target]:
    """A server of its own for a repository, or the one that there is."""
    if isinstance(place, Target):
        yield place
    else:
        with Target(place) as target:
            yield target


def over_and_over(place: Path | Target, times: int, inject: Inject) -> dict[str, Any]:
    """A fault, and the way back to right answers, `times` times."""
    recoveries: list[float] = []
    with under(place) as target, Callers(target) as callers:
        for number in range(times):
            wait_for(partial(callers.settled, time.monotonic()))
            began = time.monotonic()
            inject(target, number)
            recoveries.append(wait_for(partial(callers.settled, began)))
    return row(callers.counts, times, recoveries)


def wait_for(found: Callable[[], float | None]) -> float:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if (value := found()) is not None:
            return value
        time.sleep(0.05)
    raise TimeoutError("The server did not come back.")


def row(counts: Counter[str], injected: int, recoveries: list[float], **more: Any) -> dict[str, Any]:
    errors = {name: count for name, count in counts.items() if name not in ("right", "wrong")}
    found = {"injected": injected, "right": counts["right"], "wrong": counts["wrong"], "errors": errors}
    if recoveries:
        found["recovery_s"] = {"median": round(statistics.median(recoveries), 1), "worst": round(max(recoveries), 1)}
    return found | more


def model_killed(place: Path | Target, times: int) -> dict[str, Any]:
    """Each model's process in turn; under load, so between and within steps."""
    models = ("gen_guard", "stream_guard", "guard_tokenizer", "stream_tokenizer")

    def kill(target: Target, number: int) -> None:
        time.sleep(random.random() * 0.05)
        os.kill(target.process(models[number % 4]), signal.SIGKILL)

    return over_and_over(place, times, kill)


def server_killed(place: Path | Target, times: int) -> dict[str, Any]:
    return over_and_over(place, times, lambda target, _: os.kill(target.process("tritonserver"), signal.SIGKILL))


def model_hung(place: Path | Target, times: int) -> dict[str, Any]:
    """SIGSTOP: alive, and silent. Only the canary tells."""
    models = ("gen_guard", "stream_guard", "guard_tokenizer", "stream_tokenizer")
    return over_and_over(
        place, times, lambda target, number: os.kill(target.process(models[number % 4]), signal.SIGSTOP)
    )


def out_of_memory(place: Path | Target, times: int) -> dict[str, Any]:
    """A guard's process is let have a MiB more and must grow: the kernel kills it. Needs a control group of its own."""
    meanwhile: Counter[str] = Counter()

    def limit(target: Target, number: int) -> None:
        pid = target.process(("gen_guard", "stream_guard")[number % 2])
        with GuardClient(target.url, timeout_s=5) as guard, little_memory(pid):
            for ask in (guard.classify, lambda text: guard.stream_step(f"grows {number}", prompt=text, start=True)):
                try:
                    ask("bread and butter " * 500)
                    meanwhile["answered"] += 1
                except GuardError as error:
                    meanwhile[error.code] += 1
            meanwhile["killed"] += not alive(pid)

    try:
        with little_memory(os.getpid(), limit=1 << 40):
            pass
    except OSError as error:
        return {"not run": f"no control group can be made: {error.strerror}"}
    return over_and_over(place, times, limit) | {"long requests meanwhile": dict(meanwhile)}


def alive(pid: int) -> bool:
    """A process that ended and was not waited for has no command line left."""
    with contextlib.suppress(OSError):
        return bool(Path(f"/proc/{pid}/cmdline").read_text())
    return False


@contextlib.contextmanager
def little_memory(pid: int, limit: int = 1 << 20) -> Iterator[None]:
    """Puts a process into a control group with a limit on what it takes from now on. Raises OSError."""
    root, name = Path("/sys/fs/cgroup"), "memory.max"
    if (root / "memory" / "cgroup.procs").is_file():
        root, name = root / "memory", "memory.limit_in_bytes"
    group = root / f"qwen3guard_{os.getpid()}_{pid}"
    group.mkdir()
    try:
        (group / name).write_text(str(limit))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            (root / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def client_gone(place: Path | Target, times: int) -> dict[str, Any]:
    """Clients killed with steps in flight; another goes on with their sessions from where they stood."""
    code = (
        "import sys, threading\nfrom qwen3guard_client import GuardClient\n"
        "guard = GuardClient(sys.argv[1])\nguard.stream_step(sys.argv[2], prompt=sys.argv[3], start=True)\n"
        "print('open', flush=True)\nposition = guard.stream_step(sys.argv[2], prompt=sys.argv[3], start=True).length\n"
        "while True: guard.stream_step(sys.argv[2], token_ids=[5, 6, 7], position=position)\n"
    )
    counts: Counter[str] = Counter()
    with under(place) as target, GuardClient(target.url) as guard:
        state = guard.stream_step("first", prompt=PROMPT, start=True)
        expected = guard.stream_step("first", token_ids=[9, 10, 11], position=state.length, end=True)
        for number in range(times):
            name = f"client {number}"
            with subprocess.Popen(
                [sys.executable, "-c", code, target.url, name, PROMPT], stdout=subprocess.PIPE, text=True
            ) as client:
                assert client.stdout is not None
                client.stdout.readline()
                time.sleep(random.random() * 0.1)
                client.kill()
            took_over(guard, name, state.length, expected, counts)
        guard.classify(PROMPT)
    return row(counts, times, [])


def took_over(guard: GuardClient, name: str, position: int, expected: Any, counts: Counter[str]) -> None:
    try:
        found = guard.stream_step(name, token_ids=[9, 10, 11], position=position, end=True)
    except SessionLost:
        counts["stream SESSION_LOST, replayed"] += 1
        guard.stream_step(f"{name} again", prompt=PROMPT, start=True)
        found = guard.stream_step(f"{name} again", token_ids=[9, 10, 11], position=position, end=True)
    counts["right" if agree(shown(found.tokens), shown(expected.tokens)) else "wrong"] += 1


def cancelled(place: Path | Target, times: int) -> dict[str, Any]:
    """Steps cancelled at random moments, ten for each session, which then goes on from the same position."""
    counts: Counter[str] = Counter()
    with under(place) as target, GuardClient(target.url) as guard:
        connection = triton.InferenceServerClient(target.url)
        state = guard.stream_step("first", prompt=PROMPT, start=True)
        expected = guard.stream_step("first", token_ids=[9, 10, 11], position=state.length, end=True)
        for number in range(times):
            name = f"cancelling {number}"
            guard.stream_step(name, prompt=PROMPT, start=True)
            for _ in range(10):
                step = calls.stream_step(name, token_ids=[5, 6, 7], position=state.length)
                classify = calls.classify("bread " * 50, None, None)
                for call in (step, classify):
                    sent = connection.async_infer(callback=ignore, **call.arguments(10))
                    time.sleep(random.random() * 0.01)
                    sent.cancel()
            took_over(guard, name, state.length, expected, counts)
            try:
                counts["right" if same(guard.classify(PROMPT), target.classified[PROMPT]) else "wrong"] += 1
            except GuardError as error:
                counts[f"classify {error.code}"] += 1
        connection.close()
    return row(counts, times, [], cancelled=20 * times)


def ignore(**_: object) -> None:
    """A cancelled call's result."""


def reload_refused(place: Path | Target, times: int) -> dict[str, Any]:
    """Load and unload through Triton's model repository API, which is closed."""
    refused = 0

    def reload(target: Target, _: int) -> None:
        nonlocal refused
        connection = triton.InferenceServerClient(target.url)
        for call in (connection.load_model, connection.unload_model):
            try:
                call("gen_guard")
            except InferenceServerException as error:
                refused += "restricted" in (error.message() or "")
        connection.close()

    return over_and_over(place, times, reload) | {"refused": refused}


def graph_truncated(repository: Path, times: int) -> dict[str, Any]:
    return graph_changed(repository, times, truncate)


def graph_overwritten(repository: Path, times: int) -> dict[str, Any]:
    return graph_changed(repository, times, overwrite)


def graph_replaced(repository: Path, times: int) -> dict[str, Any]:
    return graph_changed(repository, times, replace)


def truncate(data: Path) -> None:
    os.truncate(data, random.randrange(data.stat().st_size))


def overwrite(data: Path) -> None:
    """A tenth of the weights, in place."""
    size = data.stat().st_size
    with data.open("r+b") as file:
        file.seek(random.randrange(size - size // 10))
        file.write(os.urandom(size // 10))


def replace(data: Path) -> None:
    """As an export does: another file under the same name."""
    other = data.with_suffix(".new")
    shutil.copyfile(data, other)
    overwrite(other)
    other.replace(data)


def graph_changed(repository: Path, times: int, change: Callable[[Path], None]) -> dict[str, Any]:
    """A guard's weights on disk are changed under it; after a while its process is killed, and must not come back."""
    counts: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for number in range(times):
        with tempfile.TemporaryDirectory() as folder:
            models = Path(shutil.copytree(repository, Path(folder) / "models"))
            guard = ("gen_guard", "stream_guard")[number % 2]
            with Target(models) as target:
                with Callers(target) as callers:
                    wait_for(partial(callers.settled, 0.0))
                    change(models / guard / "1" / "model.onnx.data")
                    time.sleep(2)
                    with contextlib.suppress(ProcessLookupError, GuardError, OSError):
                        if target.given_up is None:
                            os.kill(target.process(guard), signal.SIGKILL)
                    until = time.monotonic() + PATIENCE_S
                    while target.given_up is None and time.monotonic() < until:
                        time.sleep(0.1)
                counts += callers.counts
                outcomes[type(target.given_up).__name__ if target.given_up else "served again"] += 1
    return row(counts, times, [], ended=dict(outcomes))


def drained(repository: Path, times: int) -> dict[str, Any]:
    """SIGTERM to `qwen3guard serve` with open streams, which go on with the next server on the same port."""
    counts: Counter[str] = Counter()
    ends: list[float] = []
    port = free_port()
    command = [Path(sys.executable).parent / "qwen3guard", "serve", "--model-repository", repository]
    with GuardClient(f"127.0.0.1:{port}", timeout_s=60) as guard:
        server = serving([*command, "--grpc-port", str(port)])
        expected = streamed(guard)
        for _ in range(times):
            streams = [guard.stream(PROMPT) for _ in range(4)]
            for stream in streams:
                stream.__enter__()
                stream.step(TEXT[:50])
            began = time.monotonic()
            counts["exit status not 0"] += stopped(server) != 0
            ends.append(time.monotonic() - began)
            server = serving([*command, "--grpc-port", str(port)])
            for stream in streams:
                try:
                    stream.step(TEXT[50:])
                    stream.finish()
                    counts["right" if agree(shown(stream.verdicts), expected) else "wrong"] += 1
                except GuardError as error:
                    counts[f"stream {error.code}"] += 1
        stopped(server)
    return row(+counts, times, [], end_s={"median": round(statistics.median(ends), 1), "worst": round(max(ends), 1)})


def serving(command: list[Any]) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready on ")
    return process


def stopped(process: subprocess.Popen[str]) -> int:
    with process:
        process.terminate()
        return process.wait(60)


def disk_full(repository: Path, times: int) -> dict[str, Any]:
    """Exports that run out of space at a random byte: the former export stays whole."""
    counts: Counter[str] = Counter()
    checkpoint = Path(__file__).parents[1] / "demo" / "gen"
    with tempfile.TemporaryDirectory() as folder:
        models = Path(shutil.copytree(repository, Path(folder) / "models"))
        before = contents(models)
        for _ in range(times):
            size = random.randrange(7 << 20)
            limit = lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
            command = [Path(sys.executable).parent / "qwen3guard", "export", checkpoint, "--output", models]
            done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                counts["exported"] += 1
            elif "Traceback" in done.stderr:
                counts["traceback"] += 1
            counts["right" if contents(models) == before else "wrong"] += 1
    return row(counts, times, [])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    }


@contextlib.contextmanager
def fake_time(library: str, offsets: Path) -> Iterator[None]:
    """What is started now sees the wall clock that `offsets` says; CLOCK_MONOTONIC, as in a real jump, goes on."""
    names = {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(offsets),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    os.environ.update(names)
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]


def clock_jumped(repository: Path, times: int) -> dict[str, Any]:
    """The wall clock of the server and its models jumps by up to ten days, by libfaketime (LIBFAKETIME names it)."""
    library = os.environ.get("LIBFAKETIME", "")
    if not Path(library).is_file():
        return {"not run": "LIBFAKETIME names no libfaketime.so.1"}
    with tempfile.TemporaryDirectory() as folder:
        offsets = Path(folder) / "offset"
        offsets.write_text("+0")
        with fake_time(library, offsets):

            def jump(_: Target, __: int) -> None:
                offsets.write_text(f"{random.randint(-864000, 864000):+d}")

            return over_and_over(repository, times, jump)


FAULTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    each.__name__: each
    for each in (
        model_killed,
        server_killed,
        model_hung,
        drained,
        disk_full,
        graph_truncated,
        graph_overwritten,
        graph_replaced,
        reload_refused,
        client_gone,
        cancelled,
        clock_jumped,
        out_of_memory,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FAULTS)} (default: all)")
    parser.add_argument("--times", type=int, default=20)
    arguments = parser.parse_args()
    found = {}
    for name in arguments.names or FAULTS:
        found[name] = FAULTS[name](arguments.repository.resolve(), arguments.times)
        print(name, found[name], file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))
    return 1 if any(each.get("wrong") for each in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
