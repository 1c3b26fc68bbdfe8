"""Slow clients beside honest ones: does the proxy answer, and how much later?

    .venv/bin/python trials/flood.py MODEL_REPOSITORY [--connections 1000] [--seconds 20] [--rounds 2] [PROXY OPTION]...

A real proxy process stands before the guard and a fake LLM. Honest callers ask for chat completions, half of them over
a new connection each time; their times are taken in turns without and with a flood, which has a process of its own. Its
connections trickle heads, trickle bodies, send nothing, or stay after an answer; each is opened again when the proxy
closes it. Prints a row for each kind, and one JSON object at last; times are in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from qwen3guard_client import GuardClient
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LONG = 100_000
"""Bytes that nobody sends to their end."""
SLOW = {
    "heads": (b"", HEAD + b"X-Slow: " + LONG * b"x"),
    "bodies": (HEAD + b"Content-Length: %d\r\n\r\n" % LONG, b"{" + LONG * b" "),
    "empty": (b"", b""),
    "kept": (HEALTH, b""),
}
"""What each kind of slow connection sends at once, and what a byte at a time."""
KINDS = {**{kind: (kind,) for kind in SLOW}, "mixed": tuple(SLOW)}
BYTE_S = 1.0
PROMPT = "What should I cook for dinner tonight?"
ANSWER = "Cook some rice and roast a few vegetables with olive oil."
CALLERS = 4
PAUSE_S = 0.02
"""Between two requests of one caller."""
FILES_BESIDE = 200


class Flood:
    """Slow connections to one port, as long as `stand` runs."""

    def __init__(self, port: int, kinds: Sequence[str], byte_s: float = BYTE_S) -> None:
        self._port = port
        self._kinds = kinds
        self._byte_s = byte_s
        self.opened: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        """How many the other side has closed, by kind."""

    async def stand(self, connections: int) -> None:
        """Never ends by itself."""
        kinds = itertools.cycle(self._kinds)
        await asyncio.gather(*(self._again_and_again(next(kinds)) for _ in range(connections)))

    async def _again_and_again(self, kind: str) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(self._byte_s)
                continue
            self.opened[kind] += 1
            sending = asyncio.create_task(self._send(writer, *SLOW[kind]))
            try:
                while await reader.read(2**16):
                    pass
            except OSError:
                pass
            finally:
                sending.cancel()
                writer.transport.abort()
            self.closed[kind] += 1

    async def _send(self, writer: asyncio.StreamWriter, at_once: bytes, slowly: bytes) -> None:
        writer.write(at_once)
        for byte in slowly:
            writer.write(bytes([byte]))
            await asyncio.sleep(self._byte_s)


def flood_until(ended: Event, standing: Event, port: int, kinds: Sequence[str], connections: int) -> None:
    """A process: floods until `ended` is set, and sets `standing` once all connections have been opened."""

    async def until_ended() -> None:
        flood = Flood(port, kinds)
        running = asyncio.create_task(flood.stand(connections))
        while not ended.is_set():
            await asyncio.sleep(0.1)
            if flood.opened.total() >= connections:
                standing.set()
        running.cancel()

    _allow_files(connections)
    asyncio.run(until_ended())


@contextlib.contextmanager
def flooded(port: int, kinds: Sequence[str], connections: int, patience_s: float = 60.0) -> Iterator[None]:
    """Once all connections have been opened. Raises TimeoutError if that takes longer than `patience_s`."""
    context = multiprocessing.get_context("spawn")
    ended, standing = context.Event(), context.Event()
    process = context.Process(target=flood_until, args=(ended, standing, port, kinds, connections), daemon=True)
    process.start()
    try:
        if not standing.wait(patience_s):
            raise TimeoutError("The flood does not stand.")
        yield
    finally:
        ended.set()
        process.join()


class Caller:
    """Asks for whole answers, one after the other, over one connection or over a new one each time."""

    def __init__(self, port: int, *, keeps: bool) -> None:
        self._port = port
        self._keeps = keeps
        self._kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> int:
        """The status of the answer, or 0 where there is none. A kept connection that was closed is opened again."""
        body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": PROMPT}]}).encode()
        request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        is_new = self._kept is None
        try:
            self._kept = self._kept or await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._kept
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0 if is_new else await self.ask()
        if not self._keeps:
            self.close()
        return int(head.split()[1])

    def close(self) -> None:
        if self._kept:
            self._kept[1].close()
            self._kept = None

    async def ask_for(self, seconds: float, times: list[float], statuses: Counter[int]) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            began = time.monotonic()
            statuses[await self.ask()] += 1
            times.append(time.monotonic() - began)
            await asyncio.sleep(PAUSE_S)
        self.close()


async def call_for(port: int, seconds: float, times: list[float], statuses: Counter[int]) -> None:
    callers = [Caller(port, keeps=bool(number % 2)) for number in range(CALLERS)]
    await asyncio.gather(*(each.ask_for(seconds, times, statuses) for each in callers))


@contextlib.asynccontextmanager
async def fake_llm() -> AsyncIterator[str]:
    async def answer(_: web.Request) -> web.Response:
        message = {"role": "assistant", "content": ANSWER}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({"id": "1", "object": "chat.completion", "created": 0, "choices": [choice]})

    application = web.Application()
    application.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


@contextlib.contextmanager
def proxied(guard: str, llm: str, options: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The port and the process's id of a proxy."""
    command: list[str | Path] = [
        Path(sys.executable).parent / "qwen3guard",
        "proxy",
        "--port",
        "0",
        "--url",
        guard,
        "--upstream",
        llm,
    ]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    try:
        yield int(process.stdout.readline().split(":")[-1].removesuffix("/v1\n")), process.pid
    finally:
        process.terminate()
        process.communicate()


def resident_mib(process: int) -> float:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024, 1)


async def measure(guard: str, arguments: argparse.Namespace, options: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    async with fake_llm() as llm:
        with proxied(guard, llm, options) as (port, process):
            await call_for(port, 2.0, [], Counter())  # a warm-up
            for kind in arguments.kinds:
                times: dict[str, list[float]] = {"without": [], "with": []}
                statuses: Counter[int] = Counter()
                for _ in range(arguments.rounds):
                    await call_for(port, arguments.seconds, times["without"], statuses)
                    with flooded(port, KINDS[kind], arguments.connections):
                        await call_for(port, arguments.seconds, times["with"], statuses)
                        memory = resident_mib(process)
                row: dict[str, Any] = {"flood": kind, "statuses": dict(statuses), "resident_mib": memory}
                for name, values in times.items():
                    row[name] = {f"p{at}": round(float(np.percentile(values, at)) * 1e3, 1) for at in (50, 99)}
                    row[name]["asked"] = len(values)
                row["p99_ratio"] = round(row["with"]["p99"] / row["without"]["p99"], 2)
                rows.append(row)
                print(json.dumps(row), file=sys.stderr)
    return rows


def _allow_files(connections: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, connections + FILES_BESIDE)), hard))


def main() -> int:
    """Returns 1 where an honest request was not answered with 200, or the p99 with a flood is twice that without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments, options = parser.parse_known_args()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        EmbeddedServer(ServerSettings(arguments.repository, grpc_port=port)) as server,
        GuardClient(server.url) as guard,
    ):
        server.wait_ready(lambda: canary.check(guard, server.manifests))
        rows = asyncio.run(measure(server.url, arguments, options))
    print(json.dumps({"connections": arguments.connections, "rows": rows}))
    return int(any(set(row["statuses"]) != {200} or row["p99_ratio"] >= 2 for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
