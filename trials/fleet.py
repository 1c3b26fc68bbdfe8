"""A fleet that changes under streams: three real servers behind the shipped nginx configuration. Is a verdict wrong, is
a stream lost, and how late is a step?

    .venv/bin/python trials/fleet.py [--streams 64] [--taken-away 200] [--seconds 20]

Streams in random pieces go on all the time, while two replicas become three and two again, are restarted one after the
other, and serve another export and the first again. A stream's verdicts must be those of one of the two exports, as
that export gives them for the whole text at once. At last, one of three replicas is killed under streams of 200 words,
which must be replayed elsewhere.

Prints a row for each change, and one JSON object at last. Fails for a wrong verdict and for a lost stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwen3guard_client import AsyncGuardClient, GuardClient
from qwen3guard_contract.errors import GuardError
from qwen3guard_export import export
from qwen3guard_export.repository import place_models
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from soak import agree, shown
from support.nginx import Proxy
from support.places import DEMO
from support.serving import free_port
from support.texts import cut

Export = Literal["fp32", "dq8r"]
"""The two exports of the same guard; their probabilities differ by more than `agree` allows."""
EXPORTS: tuple[Export, ...] = ("fp32", "dq8r")
TIMEOUT_S = 30.0
WORDS = 200
"""Of each stream under which a replica is taken away."""
SLOW = """
import time
from qwen3guard_runtime.engine.onnx_runner import OnnxRunner

passed = OnnxRunner._pass
OnnxRunner._pass = lambda *arguments: (time.sleep({seconds}), passed(*arguments))[1]
"""
"""Appended to a model.py, so that every pass sleeps, as if the guard were larger."""


@dataclass(frozen=True)
class Case:
    prompt: str
    text: str
    streamed: dict[Export, Any]
    """What each export says of the whole text at once."""


@dataclass
class Seen:
    """What the streams saw of one change. `steps` has the seconds of each step of a stream that stayed where it was,
    and `moved` those of a step that found its session lost: they hold the whole replay."""

    what: str
    steps: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    streams: Counter[str] = field(default_factory=Counter)

    def row(self) -> dict[str, Any]:
        return {
            "change": self.what,
            "streams": self.streams["right"],
            "wrong": self.streams["wrong"],
            "lost": {name: count for name, count in self.streams.items() if name not in ("right", "wrong")},
            "steps": len(self.steps),
            "p50_ms": round(1000 * statistics.median(self.steps), 1) if self.steps else None,
            "p99_ms": round(1000 * p99(self.steps), 1) if self.steps else None,
            "replayed": len(self.moved),
            "longest_replay_s": round(max(self.moved), 2) if self.moved else None,
        }


def p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


class Fleet:
    """Replicas by name, of which nginx knows some. All are started at once, so that what is measured is the change."""

    def __init__(self, folder: Path, repositories: dict[Export, Path], names: Sequence[str]) -> None:
        self._repositories = repositories
        self._ports = {name: free_port() for name in names}
        self.servers = {name: self._server(name, "fp32") for name in names}
        folder.mkdir()
        self.proxy = Proxy(folder, [])
        self._list: list[str] = []

    def _server(self, name: str, weights: Export) -> EmbeddedServer:
        return EmbeddedServer(ServerSettings(self._repositories[weights], grpc_port=self._ports[name], load_s=120))

    def __enter__(self) -> Fleet:
        for server in self.servers.values():
            start(server)
        self.proxy._list([server.url for server in self.servers.values()])  # nginx starts with a list that is not empty
        self.proxy.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.__exit__()
        for server in self.servers.values():
            server.stop(kill=True)

    def list(self, names: Iterable[str]) -> None:
        """Tells nginx of these replicas alone. The others get `down`, as the hash is over the whole list."""
        wanted = set(names)
        self.proxy.use([f"{each.url}{'' if name in wanted else ' down'}" for name, each in self.servers.items()])
        time.sleep(0.5)

    def restart(self, name: str, weights: Export) -> None:
        """One step of a rolling update: nginx is told, the replica drained and started anew, and nginx told again."""
        self.list(each for each in self.servers if each != name)
        self.servers[name].stop()
        self.servers[name] = self._server(name, weights)
        start(self.servers[name])
        self.list(self.servers)


def start(server: EmbeddedServer) -> None:
    server.__enter__()
    with GuardClient(server.url) as guard:
        server.wait_ready(lambda: canary.check(guard, server.manifests))


class Crowd:
    """Streams that go on until they are told to end, in random pieces, with a pause of about `pause_s` after each."""

    def __init__(self, url: str, cases: Sequence[Case], streams: int, pause_s: float) -> None:
        self._url = url
        self._cases = cases
        self._streams = streams
        self._pause_s = pause_s
        self._ended = False
        self.seen = Seen("before")

    async def during(self, changes: Sequence[tuple[str, Callable[[], object]]], seconds: float) -> list[Seen]:
        """Makes one change after the other, each in a thread, and goes on for `seconds` after it."""
        found = [self.seen]
        async with AsyncGuardClient(self._url, timeout_s=TIMEOUT_S) as guard:
            running = [asyncio.create_task(self._stream(guard, seed)) for seed in range(self._streams)]
            await asyncio.sleep(seconds)
            for what, change in changes:
                self.seen = Seen(what)
                found.append(self.seen)
                await asyncio.to_thread(change)
                await asyncio.sleep(seconds)
            self._ended = True
            await asyncio.gather(*running)
        return found

    async def _stream(self, guard: AsyncGuardClient, seed: int) -> None:
        source = random.Random(seed)
        await asyncio.sleep(source.uniform(0, 2 * self._pause_s))
        while not self._ended:
            case = source.choice(self._cases)
            try:
                stream = guard.stream(case.prompt)
                async with stream:
                    for piece in cut(case.text, source, longest=30):
                        await self._step(stream, piece)
                        await asyncio.sleep(source.uniform(0.5, 1.5) * self._pause_s)
            except GuardError as error:
                self.seen.streams[error.code] += 1
                continue
            found = shown([stream.prompt_verdict, *stream.verdicts])
            right = any(agree(found, expected) for expected in case.streamed.values())
            self.seen.streams["right" if right else "wrong"] += 1

    async def _step(self, stream: Any, piece: str) -> None:
        session, began_s = stream.session, time.monotonic()
        await stream.step(piece)
        (self.seen.steps if stream.session == session else self.seen.moved).append(time.monotonic() - began_s)


def changes(fleet: Fleet) -> list[tuple[str, Callable[[], object]]]:
    """What happens to a fleet of three, of which nginx knows two at first."""
    one, two, three = fleet.servers

    def all_to(weights: Export) -> None:
        for name in (one, two, three):
            fleet.restart(name, weights)

    return [
        ("2 replicas become 3", lambda: fleet.list((one, two, three))),
        ("3 become 2", lambda: fleet.list((one, two))),
        ("restarted one after the other", lambda: all_to("fp32")),
        ("another export rolled out", lambda: all_to("dq8r")),
        ("and rolled back", lambda: all_to("fp32")),
        ("one is killed", lambda: fleet.servers[two].stop(kill=True)),
    ]


async def taken_away(fleet: Fleet, case: Case, streams: int, pause_s: float, seconds: float) -> list[Seen]:
    """Kills one of the replicas under `streams` that have all of `case` but its last words written. The steps after it
    are those that began before the last stream was replayed."""
    words = case.text.split(" ")
    before, after = Seen(f"{streams} streams of {WORDS} words"), Seen(f"one of {len(fleet.servers)} replicas is killed")
    untouched: list[tuple[float, float]] = []
    """When each step after the kill ended, of the streams that stayed, and its seconds."""
    replayed_s = 0.0
    killed = asyncio.Event()
    ready, opened = asyncio.Semaphore(0), asyncio.Event()

    async def judge(guard: AsyncGuardClient, seed: int) -> None:
        nonlocal replayed_s
        source = random.Random(seed)
        stream = guard.stream(case.prompt)
        moved = False
        try:
            async with stream:
                await stream.step(" ".join(words[:WORDS]))
                ready.release()
                await opened.wait()
                for word in words[WORDS:]:
                    await asyncio.sleep(source.uniform(0.5, 1.5) * pause_s)
                    session, began_s = stream.session, time.monotonic()
                    await stream.step(f" {word}")
                    now_s = time.monotonic()
                    if stream.session != session:
                        moved, replayed_s = True, now_s
                        after.moved.append(now_s - began_s)
                    elif not killed.is_set():
                        before.steps.append(now_s - began_s)
                    elif not moved:
                        untouched.append((now_s, now_s - began_s))
        except GuardError as error:
            after.streams[error.code] += 1
            return
        right = agree(shown([stream.prompt_verdict, *stream.verdicts]), case.streamed["fp32"])
        after.streams["right" if right else "wrong"] += 1

    async with AsyncGuardClient(fleet.proxy.url, timeout_s=TIMEOUT_S) as guard:
        running = []
        for seed in range(streams):
            running.append(asyncio.create_task(judge(guard, seed)))
            await ready.acquire()  # one after the other: what is measured is the replay, not the opening
        opened.set()
        await asyncio.sleep(seconds)
        killed.set()
        await asyncio.to_thread(fleet.servers[next(iter(fleet.servers))].stop, kill=True)
        await asyncio.gather(*running)
    after.steps = [took_s for ended_s, took_s in untouched if ended_s - took_s <= replayed_s]
    return [before, after]


def repositories(folder: Path, pass_ms: float = 0.0) -> dict[Export, Path]:
    """Both demo guards in each of EXPORTS. Stream's passes sleep `pass_ms`."""
    made = {weights: folder / weights for weights in EXPORTS}
    for weights, repository in made.items():
        for variant in ("gen", "stream"):
            place_models(repository, export(str(DEMO / variant), repository, weights=weights, say=lambda _: None))
        if pass_ms:
            with (repository / "stream_guard" / "1" / "model.py").open("a") as model:
                model.write(SLOW.format(seconds=pass_ms / 1e3))
    return made


def cases(made: dict[Export, Path], texts: Sequence[tuple[str, str]]) -> list[Case]:
    """What each export says of each prompt and text, from a server of its own."""
    said: dict[Export, list[Any]] = {}
    for weights, repository in made.items():
        server = EmbeddedServer(ServerSettings(repository, grpc_port=free_port(), load_s=120))
        try:
            start(server)
            with GuardClient(server.url, timeout_s=120) as guard:
                said[weights] = [judged(guard, *each) for each in texts]
        finally:
            server.stop(kill=True)
    return [
        Case(prompt, text, {weights: said[weights][number] for weights in said})
        for number, (prompt, text) in enumerate(texts)
    ]


def judged(guard: GuardClient, prompt: str, text: str) -> Any:
    with guard.stream(prompt) as stream:
        stream.step(text)
    return shown([stream.prompt_verdict, *stream.verdicts])


def everyday() -> list[tuple[str, str]]:
    """The demo's everyday prompts and responses."""
    lines = (DEMO / "everyday.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["prompt"], f"{row.get('response', '')} {row['prompt']}") for row in map(json.loads, lines)]


def of_words(texts: Sequence[tuple[str, str]], count: int) -> tuple[str, str]:
    words = " ".join(text for _, text in texts).split()
    return texts[0][0], " ".join((words * (1 + count // len(words)))[:count])


def bad(rows: Iterable[Seen]) -> list[str]:
    """What must not be."""
    return [
        f"{seen.what}: {count} streams {name}"
        for seen in rows
        for name, count in seen.streams.items()
        if name != "right"
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two steps of a stream")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the streams go on after each change")
    parser.add_argument("--taken-away", type=int, default=200, help="streams under which a replica is killed at last")
    parser.add_argument("--steps", type=int, default=30, help="of each of these")
    parser.add_argument("--pass-ms", type=float, default=0.0, help="how long each pass of Stream sleeps")
    parser.add_argument("--replicas", type=int, default=3, help="of which one is killed at last")
    parser.add_argument("--only", choices=("changes", "taken-away"), help="one part alone")
    arguments = parser.parse_args()
    rows: list[Seen] = []
    with tempfile.TemporaryDirectory(prefix="fleet-") as temporary:
        folder = Path(temporary)
        made = repositories(folder, arguments.pass_ms)
        texts = everyday()
        *small, large = cases(made, [*texts, of_words(texts, WORDS + arguments.steps)])
        if arguments.only != "taken-away":
            with Fleet(folder / "changes", made, ("one", "two", "three")) as fleet:
                fleet.list(("one", "two"))
                crowd = Crowd(fleet.proxy.url, small, arguments.streams, arguments.pause)
                rows += asyncio.run(crowd.during(changes(fleet), arguments.seconds))
        if arguments.only != "changes":
            names = [f"replica {number}" for number in range(arguments.replicas)]
            with Fleet(folder / "taken", made, names) as fleet:
                taken = taken_away(fleet, large, arguments.taken_away, 2 * arguments.pause, arguments.seconds)
                rows += asyncio.run(taken)
    for seen in rows:
        print(json.dumps(seen.row()), flush=True)
    faults = bad(rows)
    print("\n".join(faults) or "nothing wrong", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
