"""Many streams for a long time over connections that break: is every verdict right, and does memory stay flat?

    .venv/bin/python trials/soak.py MODEL_REPOSITORY [--minutes 10] [--sessions 32]

Each session moderates the demo's everyday texts in random pieces, one after the other. It may leave in mid-stream
without a word, or find its session gone. The sessions talk through forwarders that cut a connection every second.
What a text's verdicts are is asked once, in one whole pass over a connection of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from qwen3guard_client import GuardClient, TokenVerdict
from qwen3guard_contract.errors import GuardError
from qwen3guard_server import canary
from qwen3guard_server.processes import model_processes, resident_bytes
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings

EVERYDAY = Path(__file__).parents[1] / "demo" / "everyday.jsonl"
FORWARDERS = 8
CUT_S = 1.0
SAMPLE_S = 5.0
TOLERANCE = 1e-4
"""Of a probability, between one pass and pieces, in fp32."""

Case = tuple[str, str]
Shown = list[tuple[int, int | None, str, bool, bool, list[float]]]


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
        for end in (source, sink):
            end.close()

    def cut(self) -> bool:
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
        return bool(pairs)


def shown(verdicts: tuple[TokenVerdict, ...]) -> Shown:
    return [
        (
            each.position,
            each.end,
            each.severity.value,
            each.strict,
            each.loose,
            list(each.severity_probabilities.values()),
        )
        for each in verdicts
    ]


def agree(found: Shown, expected: Shown) -> bool:
    return [each[:5] for each in found] == [each[:5] for each in expected] and all(
        abs(a - b) <= TOLERANCE
        for one, other in zip(found, expected, strict=True)
        for a, b in zip(one[5], other[5], strict=True)
    )


class Session(threading.Thread):
    """Streams one text after the other, and counts what happens."""

    def __init__(self, seed: int, url: str, server: str, expected: dict[Case, Shown], until: float) -> None:
        super().__init__()
        self._source = random.Random(seed)
        self._url = url
        self._server = server
        self._expected = expected
        self._until = until
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        with GuardClient(self._url, timeout_s=60) as guard, GuardClient(self._server) as saboteur:
            while time.monotonic() < self._until:
                try:
                    self._stream(guard, saboteur)
                except GuardError as error:
                    self.counts[f"error {error.code}"] += 1

    def _stream(self, guard: GuardClient, saboteur: GuardClient) -> None:
        case = prompt, text = self._source.choice(list(self._expected))
        stream = guard.stream(prompt)
        stream.__enter__()
        while text:
            size = self._source.randint(1, 20)
            stream.step(text[:size])
            text = text[size:]
            self.counts["steps"] += 1
            if self._source.random() < 0.01:
                saboteur.stream_step(stream.session, position=0, end=True)
                self.counts["sessions taken away"] += 1
            if self._source.random() < 0.01:
                self.counts["streams abandoned"] += 1
                return
        stream.finish()
        self.counts["streams"] += 1
        self.counts["tokens"] += len(stream.verdicts)
        self.counts["wrong"] += not agree(shown(stream.verdicts), self._expected[case])


def memory(pid: int) -> dict[str, int]:
    """Resident mebibytes of the server and of its models' processes."""
    processes = {"tritonserver": pid} | model_processes(pid)
    return {name: resident_bytes(process) >> 20 for name, process in processes.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--grpc-port", type=int, default=8902)
    arguments = parser.parse_args()
    with EmbeddedServer(ServerSettings(arguments.repository, grpc_port=arguments.grpc_port)) as server:
        with GuardClient(server.url, timeout_s=120) as guard:
            server.wait_ready(lambda: canary.check(guard, server.manifests))
            expected = {}
            for line in EVERYDAY.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                text = row.get("response", "") + " " + row["prompt"]
                with guard.stream(row["prompt"]) as stream:
                    stream.step(text)
                expected[row["prompt"], text] = shown(stream.verdicts)
        found = soak(server, expected, arguments.minutes, arguments.sessions)
    print(json.dumps(found, indent=1))
    return 1 if found["counts"]["wrong"] else 0


def soak(server: EmbeddedServer, expected: dict[Case, Shown], minutes: float, count: int) -> dict[str, object]:
    forwarders = [Forwarder((server.settings.address, server.settings.grpc_port)) for _ in range(FORWARDERS)]
    began = time.monotonic()
    until = began + 60 * minutes
    sessions = [Session(seed, forwarders[seed % FORWARDERS].url, server.url, expected, until) for seed in range(count)]
    for session in sessions:
        session.start()
    cuts = 0
    samples: list[tuple[float, dict[str, int]]] = []
    source = random.Random(0)
    while any(session.is_alive() for session in sessions):
        time.sleep(CUT_S)
        cuts += source.choice(forwarders).cut()
        if not samples or time.monotonic() - samples[-1][0] > SAMPLE_S:
            samples.append((time.monotonic(), memory(server.pid)))
            print(f"{samples[-1][0] - began:6.0f} s {samples[-1][1]}", file=sys.stderr)
    counts = sum((session.counts for session in sessions), Counter())
    third = len(samples) // 3
    early, late = ([sample for _, sample in part] for part in (samples[third : 2 * third], samples[2 * third :]))
    return {
        "guard": [f"{each.source}, {each.weights}" for each in server.manifests.values()],
        "minutes": round((time.monotonic() - began) / 60, 1),
        "sessions": count,
        "connections cut": cuts,
        "counts": {"wrong": 0} | dict(counts),
        "memory_mib_middle_third": {name: max(sample[name] for sample in early) for name in early[0]},
        "memory_mib_last_third": {name: max(sample[name] for sample in late) for name in late[0]},
    }


if __name__ == "__main__":
    sys.exit(main())
