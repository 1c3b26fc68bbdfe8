"""Many streams and classifications for a long time: is every verdict right, and does memory stay flat?

    .venv/bin/python trials/soak.py [--weights fp32 dq8r] [--minutes 10] [--streams 16] [--classifications 2]

For each format of weights, both demo guards are exported and served, with sessions that are forgotten after 30 s. Each
stream is one of the demo's everyday texts in random pieces. A fifth of them is left in mid-stream without a word; some
find their session gone. They talk through forwarders that cut a connection every few seconds. What the verdicts are is
asked once, in one whole pass over a connection of its own.

Prints what was found as JSON, and the memory of each process on standard error every few seconds. Fails for a wrong
verdict, for any error, for a session that is not forgotten, and for a process whose memory grew by more than FLAT from
the middle to the end.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3guard_client import Classification, GuardClient, PromptVerdict, TokenVerdict
from qwen3guard_contract.errors import GuardError
from qwen3guard_export import export
from qwen3guard_export.repository import place_models
from qwen3guard_server import canary
from qwen3guard_server.processes import model_processes, resident_bytes
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings

DEMO = Path(__file__).parents[1] / "demo"
IDLE_S = 30
ABANDONED = 0.2
"""The share of the streams that nobody ends."""
TAKEN_AWAY = 0.01
"""The share of the steps after which somebody else ends the session."""
FORWARDERS = 8
CUT_S = 5.0
POLL_S = 0.5
WARM_UP_S = 10.0
FLAT = 0.02
"""How much a process may grow from the middle to the end, as a share of its memory."""
BAD = ("wrong", "error", "sessions kept")
"""How the names of counts begin that must be 0."""
TOLERANCE = 1e-4
"""Of a probability, between one pass and pieces."""


class Forwarder:
    """A port that passes everything on to the server, until a connection is cut."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            ours, _ = self._listener.accept()
            theirs = socket.create_connection(self._target)
            self._pairs.append((ours, theirs))
            for source, sink in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            pass
        _hang_up(source, sink)

    def cut(self) -> bool:
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _hang_up(*pair)
        return bool(pairs)


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):  # hung up already
            end.shutdown(socket.SHUT_RDWR)  # a close alone would say nothing while another thread reads
        end.close()


def shown(verdicts: Sequence[TokenVerdict | PromptVerdict | Classification]) -> list[Any]:
    return [each.as_dict() | {"run": getattr(each, "run", None)} for each in verdicts]


def agree(found: Any, expected: Any) -> bool:
    """Whether two values of `shown` are the same but for TOLERANCE."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(agree(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(agree, found, expected))
    if isinstance(expected, float):
        return abs(found - expected) <= TOLERANCE
    return bool(found == expected)


@dataclass(frozen=True)
class Case:
    """A text, and what both guards say of it in one whole pass."""

    prompt: str
    text: str
    streamed: list[Any]
    classified: list[Any]

    @classmethod
    def of(cls, guard: GuardClient, prompt: str, text: str) -> Case:
        with guard.stream(prompt) as stream:
            stream.step(text)
        found = guard.classify(prompt, text)
        return cls(prompt, text, shown([stream.prompt_verdict, *stream.verdicts]), shown([found]))


class Caller(threading.Thread, ABC):
    """Asks for one case after the other until `until`, and counts what happens."""

    def __init__(self, seed: int, url: str, cases: Sequence[Case], until: float) -> None:
        super().__init__()
        self._source = random.Random(seed)
        self._url = url
        self._cases = cases
        self._until = until
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        with GuardClient(self._url, timeout_s=60) as guard:
            while time.monotonic() < self._until:
                try:
                    self.ask(guard, self._source.choice(self._cases))
                except GuardError as error:
                    self.counts[f"error {error.code}"] += 1

    @abstractmethod
    def ask(self, guard: GuardClient, case: Case) -> None:
        """Asks about one case, and counts what comes."""


class Classifier(Caller):
    def ask(self, guard: GuardClient, case: Case) -> None:
        found = shown([guard.classify(case.prompt, case.text)])
        self.counts["classifications"] += 1
        self.counts["wrong"] += not agree(found, case.classified)


class Streamer(Caller):
    def __init__(self, seed: int, url: str, cases: Sequence[Case], until: float, server: str) -> None:
        super().__init__(seed, url, cases, until)
        self._saboteur = GuardClient(server)

    def ask(self, guard: GuardClient, case: Case) -> None:
        stream = guard.stream(case.prompt)
        stream.__enter__()
        text = case.text
        left = self._source.randrange(len(text)) if self._source.random() < ABANDONED else 0
        while len(text) > left:
            size = self._source.randint(1, 20)
            stream.step(text[:size])
            text = text[size:]
            self.counts["steps"] += 1
            if self._source.random() < TAKEN_AWAY:
                self._saboteur.stream_step(stream.session, position=0, end=True)
                self.counts["sessions taken away"] += 1
        if left:
            self.counts["streams abandoned"] += 1
            return
        stream.finish()
        self.counts["streams"] += 1
        self.counts["tokens"] += len(stream.verdicts)
        self.counts["wrong"] += not agree(shown([stream.prompt_verdict, *stream.verdicts]), case.streamed)


def memory(pid: int) -> dict[str, float]:
    """The resident memory of the server and of its models' processes, in MiB."""
    processes = {"tritonserver": pid} | model_processes(pid)
    return {name: resident_bytes(process) / 2**20 for name, process in processes.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def sessions_kept(metrics_port: int, within_s: float) -> int:
    """How many sessions the guard still holds when they should be forgotten, `within_s` seconds from now at the
    latest."""
    until = time.monotonic() + within_s
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30) as response:
            (held,) = re.findall(r"^qwen3guard_sessions(?:{.*})? (\d+)", response.read().decode(), re.MULTILINE)
        if held == "0" or time.monotonic() > until:
            return int(held)
        time.sleep(POLL_S)


def soak(
    repository: Path,
    *,
    minutes: float,
    idle_s: float,
    streams: int,
    classifications: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Serves `repository`, which has both guards and forgets sessions after `idle_s`. Returns what was found.

    Memory is compared between the middle and the end, both times when nobody asks and no session is held any more: how
    much keys and values take meanwhile depends on how fast the machine is. Before, three times as many ask for a
    moment, so that ONNX Runtime has the memory for its largest passes.
    """
    port, metrics_port = free_port(), free_port()
    with EmbeddedServer(ServerSettings(repository, grpc_port=port, metrics_port=metrics_port)) as server:
        with GuardClient(server.url, timeout_s=120) as guard:
            server.wait_ready(lambda: canary.check(guard, server.manifests))
            rows = [json.loads(line) for line in (DEMO / "everyday.jsonl").read_text(encoding="utf-8").splitlines()]
            cases = [Case.of(guard, row["prompt"], row.get("response", "") + " " + row["prompt"]) for row in rows]
        forwarders = [Forwarder((server.settings.address, port)) for _ in range(FORWARDERS)]
        counts: Counter[str] = Counter(wrong=0)
        quiet = []
        for part, (seconds, times) in enumerate([(WARM_UP_S, 3), (30 * minutes, 1), (30 * minutes, 1)]):
            until = time.monotonic() + seconds
            callers: list[Caller] = [
                Streamer(1000 * part + number, forwarders[number % FORWARDERS].url, cases, until, server.url)
                for number in range(streams * times)
            ]
            callers += [
                Classifier(1000 * part + number, forwarders[number % FORWARDERS].url, cases, until)
                for number in range(classifications * times)
            ]
            counts += run(callers, forwarders, lambda: say(shown_memory(server)))
            counts["sessions kept"] += sessions_kept(metrics_port, 2 * idle_s + 5)
            quiet.append(memory(server.pid))
            say(shown_memory(server))
        fault = server.fault()
    return {
        "guards": [f"{each.source}, {each.weights}" for each in server.manifests.values()],
        "minutes": minutes,
        "streams at a time": streams,
        "classifications at a time": classifications,
        "counts": dict(counts),
        "fault": str(fault) if fault else None,
        "memory_mib": {name: [round(each[name], 1) for each in quiet] for name in quiet[0]},
        "grew": {name: round(quiet[-1][name] / quiet[-2][name] - 1, 4) for name in quiet[0]},
    }


def run(callers: Sequence[Caller], forwarders: Sequence[Forwarder], every_cut: Callable[[], None]) -> Counter[str]:
    """What the callers counted, with the connections that were cut meanwhile."""
    for caller in callers:
        caller.start()
    source = random.Random(len(callers))
    counts: Counter[str] = Counter()
    while alive := [caller for caller in callers if caller.is_alive()]:
        alive[0].join(CUT_S)
        counts["connections cut"] += source.choice(forwarders).cut()
        every_cut()
    return sum((caller.counts for caller in callers), counts)


def shown_memory(server: EmbeddedServer) -> str:
    return "  ".join(f"{name} {mib:.1f}" for name, mib in memory(server.pid).items())


def failures(found: dict[str, Any], flat: float = FLAT) -> list[str]:
    """What must not be in what `soak` found. `flat` is the most that a process may have grown."""
    bad = [f"{count} {name}" for name, count in found["counts"].items() if count and name.startswith(BAD)]
    bad += [f"{name} grew by {share:.1%}" for name, share in found["grew"].items() if share > flat]
    return bad + [found["fault"]] * bool(found["fault"])


def exported(weights: str, folder: Path) -> Path:
    """Both demo guards in a repository, with sessions that are forgotten after IDLE_S."""
    for variant in ("gen", "stream"):
        place_models(folder, export(str(DEMO / variant), folder, weights=weights, say=lambda _: None))
    forget_after(folder, IDLE_S)
    return folder


def forget_after(repository: Path, idle_s: int) -> None:
    """Sets how long sessions may be idle, in the guard and in Triton."""
    config = repository / "stream_guard" / "config.pbtxt"
    text, guards = re.subn(r'(key: "idle_s"\s+value {\s+string_value: ")[^"]*', rf"\g<1>{idle_s}", config.read_text())
    text, tritons = re.subn(r"(max_sequence_idle_microseconds: )\d+", rf"\g<1>{idle_s * 1_000_000}", text)
    assert (guards, tritons) == (1, 1)
    config.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=["fp32", "dq8r"], help="each for --minutes")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--classifications", type=int, default=2)
    arguments = parser.parse_args()
    bad = []
    for weights in arguments.weights:
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            found = soak(
                exported(weights, Path(folder)),
                minutes=arguments.minutes,
                idle_s=IDLE_S,
                streams=arguments.streams,
                classifications=arguments.classifications,
                say=lambda line: print(line, file=sys.stderr),
            )
        print(json.dumps(found, indent=1), flush=True)
        bad += [f"{weights}: {each}" for each in failures(found)]
    print("\n".join(bad) or "nothing wrong", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
