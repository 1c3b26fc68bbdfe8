"""Ten times as many requests as the server can answer: are the accepted ones fast, and the others refused at once?

    .venv/bin/python perf/overload.py MODEL_REPOSITORY [--factor 10] [--seconds 120] [--words 60 | --measured]

The sender is a process of its own. It first sends one request at a time. Then several callers measure the rate that can
be sustained. Then it sends `--factor` times that rate at random moments (Poisson) over `--connections` connections,
without waiting for answers, and at the end one request at a time again. Answers are compared with those to one caller
alone. The last lines are one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from guards import PROMPT, RESPONSE
from product import described, models_bytes
from qwen3guard_client import GuardClient
from qwen3guard_client.transport.connection import CHANNEL
from qwen3guard_contract import wire
from qwen3guard_server import canary
from qwen3guard_server.processes import resident_bytes
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings
from tritonclient.grpc import service_pb2

METHOD = "/inference.GRPCInferenceService/ModelInfer"
SHED = "OVERLOADED"
NORMAL = 3.0
"""An answer is normal if it takes less than this many times the p99 of one caller alone."""
SAMPLE_S = 0.5
QUIET_S = 15.0
"""The time after the load in which the return to normal is measured."""
BACK_OFF_S = 0.005
SLOW = """
import time
from qwen3guard_runtime.engine.onnx_runner import OnnxRunner

passed = OnnxRunner._pass
OnnxRunner._pass = lambda *arguments: (time.sleep({seconds}), passed(*arguments))[1]
"""
"""Appended to a model.py, so that every pass sleeps."""
WAITING, THREADS = (rf'("{name}"\s+value {{\s+string_value: ")\d+' for name in ("waiting", "threads"))
REFUSED = re.compile(r'qwen3guard_refused_total\{code="OVERLOADED",model="(\w+)"\} (\d+)')

Turns = tuple[str, ...]
"""A prompt, or a prompt and its response."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one request.

    It was sent `at` on the monotonic clock, `late_s` after it was due, and took `took_s`. `result` is the verdict's
    bytes, or the name of an error; `text` is the index of its text.
    """

    at: float
    late_s: float
    took_s: float
    result: bytes | str
    text: int


def request(turns: Sequence[str], timeout_s: float) -> bytes:
    """A classify request for a prompt, or a prompt and its response, as it goes over the wire."""
    message = service_pb2.ModelInferRequest(model_name=wire.CLASSIFY.name)
    for tensor, data in zip((wire.PROMPT, wire.RESPONSE), map(str.encode, turns), strict=False):
        message.inputs.add(name=tensor.name, datatype="BYTES", shape=[1, 1])
        message.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    message.parameters["timeout"].int64_param = int(timeout_s * 1e6)
    for tensor in (wire.SEVERITY, wire.SEVERITY_PROBABILITIES):
        message.outputs.add(name=tensor.name)
    return bytes(message.SerializeToString())


class Caller:
    """Sends prepared requests over several connections, and keeps the outcome of each."""

    def __init__(self, url: str, texts: Sequence[Turns], connections: int, timeout_s: float) -> None:
        options = [*CHANNEL, ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(url, options) for _ in range(connections)]
        self._send = [channel.unary_unary(METHOD) for channel in self._channels]
        self._requests = [request(turns, timeout_s) for turns in texts]
        self._timeout_s = timeout_s
        self._source = random.Random(0)
        self.outcomes: list[Outcome] = []

    async def call(self, due: float | None = None, number: int | None = None) -> Outcome:
        """Sends request `number`, or a random one."""
        number = self._source.randrange(len(self._requests)) if number is None else number
        send = self._source.choice(self._send)
        at = time.monotonic()
        try:
            reply = service_pb2.ModelInferResponse.FromString(
                await send(self._requests[number], timeout=self._timeout_s)
            )
            result: bytes | str = b"".join(reply.raw_output_contents)
        except grpc.aio.AioRpcError as error:
            full = f"[{SHED}]" in (error.details() or "")
            result = SHED if full else error.code().name
        done = time.monotonic()
        outcome = Outcome(at, at - (at if due is None else due), done - at, result, number)
        self.outcomes.append(outcome)
        return outcome

    async def closed(self, callers: int, seconds: float) -> list[Outcome]:
        """Closed-loop load: each of `callers` sends again when it has its answer, after a refusal a moment later."""
        first, until = len(self.outcomes), time.monotonic() + seconds

        async def ask() -> None:
            while time.monotonic() < until:
                if (await self.call()).result == SHED:
                    await asyncio.sleep(BACK_OFF_S)

        await asyncio.gather(*(ask() for _ in range(callers)))
        return self.outcomes[first:]

    async def each_once(self, callers: int) -> list[Outcome]:
        """Sends all requests in order; each of `callers` takes the next one when it has its answer."""
        first, numbers = len(self.outcomes), iter(range(len(self._requests)))

        async def ask() -> None:
            for number in numbers:
                while (await self.call(number=number)).result == SHED:
                    await asyncio.sleep(BACK_OFF_S)

        await asyncio.gather(*(ask() for _ in range(callers)))
        return self.outcomes[first:]

    async def poisson(self, rate: float, seconds: float) -> list[Outcome]:
        """Open-loop load: sends `rate` requests a second at random moments, without waiting for answers."""
        first, began = len(self.outcomes), time.monotonic()
        due, running = began, set()
        while (due := due + self._source.expovariate(rate)) < began + seconds:
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            task = asyncio.create_task(self.call(due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        return self.outcomes[first:]


def in_a_process(work: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
    """Runs `work` in a new process, which shares nothing with this one; returns its result."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run, (work, arguments))


def _run(work: Callable[..., Coroutine[Any, Any, Any]], arguments: tuple[Any, ...]) -> Any:
    return asyncio.run(work(*arguments))


async def load(url: str, texts: Sequence[Turns], options: argparse.Namespace) -> dict[str, list[Outcome]]:
    """The outcomes of all requests, by phase."""
    caller = Caller(url, texts, options.connections, options.timeout_s)
    phases = {"warm-up": await caller.closed(2, 3.0)}
    phases["alone"] = await caller.closed(1, options.alone_s)
    phases["saturated"] = await caller.closed(options.callers, options.alone_s)
    rate = options.factor * sustainable(phases)
    phases["growth"] = await caller.poisson(rate, min(10.0, options.seconds))  # so that memory has grown before
    await asyncio.sleep(2)
    phases["overload"] = await caller.poisson(rate, options.seconds)
    phases["after"] = await caller.closed(1, QUIET_S)
    return phases


def answered(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [each for each in outcomes if isinstance(each.result, bytes)]


def answered_rate(outcomes: list[Outcome]) -> float:
    span = max(each.at + each.took_s for each in outcomes) - outcomes[0].at
    return len(answered(outcomes)) / span


def sustainable(phases: dict[str, list[Outcome]]) -> float:
    """The answers a second that one caller gets, or several, whichever is more."""
    return max(answered_rate(phases["alone"]), answered_rate(phases["saturated"]))


def milliseconds(outcomes: Iterable[Outcome]) -> dict[str, float]:
    times = [1e3 * each.took_s for each in outcomes]
    return {f"p{q}": round(float(np.percentile(times, q)), 1) for q in (50, 99)} if times else {}


def normal_again_s(outcomes: list[Outcome], bound_s: float) -> float:
    """The seconds from the first request after the load to the last one that was refused or slow."""
    bad = [each.at + each.took_s for each in outcomes if isinstance(each.result, str) or each.took_s > bound_s]
    return round(max(bad) - outcomes[0].at, 2) if bad else 0.0


class Memory(threading.Thread):
    """Samples the resident memory of a server and of its models' processes, and its shared memory, in MiB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._samples: list[tuple[float, dict[str, float]]] = []

    def run(self) -> None:
        with contextlib.suppress(OSError, IndexError):  # the server has gone
            while True:
                self._samples.append((time.monotonic(), self._now()))
                time.sleep(SAMPLE_S)

    def _now(self) -> dict[str, float]:
        sizes = {"tritonserver": resident_bytes(self._pid)}
        sizes |= models_bytes(self._pid)
        shared = Path("/dev/shm").glob(f"*qwen3guard_{os.getpid()}_*")
        sizes["shared memory"] = sum(region.stat().st_blocks * 512 for region in shared)
        return {name: round(size / 2**20, 1) for name, size in sizes.items()}

    def most(self, begin: float, end: float) -> dict[str, float]:
        """The largest sample of each size between two moments."""
        samples = [sample for at, sample in self._samples if begin <= at <= end]
        return {name: max(sample[name] for sample in samples) for name in samples[0]}


def counted(port: int) -> dict[str, int]:
    """The refusals that the server has counted since its start, by model."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        return {model: int(count) for model, count in REFUSED.findall(page.read().decode())}


def report(phases: dict[str, list[Outcome]], memory: Memory) -> dict[str, Any]:
    alone, overload, after = phases["alone"], phases["overload"], phases["after"]
    unloaded = milliseconds(alone)
    expected = {each.text: each.result for each in answered(alone)}
    taken = answered(overload)
    refused = [each for each in overload if each.result == SHED]
    everything = [each for phase in phases.values() for each in phase]
    errors = [each.result for each in overload if isinstance(each.result, str)]
    began, ended = overload[0].at, max(each.at for each in overload)
    return {
        "unloaded_ms": unloaded,
        "sustainable_per_s": round(sustainable(phases), 1),
        "sent_per_s": round(len(overload) / (ended - began), 1),
        "seconds": round(ended - began, 1),
        "accepted": len(taken),
        "accepted_per_s": round(answered_rate(overload), 1),
        "accepted_ms": milliseconds(taken),
        "p99_ratio": round(milliseconds(taken)["p99"] / unloaded["p99"], 2),
        "refused": len(refused),
        "refused_ms": milliseconds(refused),
        "other_errors": dict(Counter(each for each in errors if each != SHED)),
        "wrong_verdicts": sum(each.result != expected.get(each.text, each.result) for each in answered(everything)),
        "sender_late_ms_p99": round(1e3 * float(np.percentile([each.late_s for each in overload], 99)), 1),
        "normal_again_s": normal_again_s(after, NORMAL * unloaded["p99"] / 1e3),
        "after_ms": milliseconds(answered(after)),
        "memory_mib_before": memory.most(began - 2, began),
        "memory_mib_during": memory.most(began, ended),
        "memory_mib_after": memory.most(ended + 5, ended + QUIET_S),
    }


def changed(repository: Path, folder: Path, waiting: int | None, pass_ms: float) -> Path:
    """Copies the Gen guard's models into `folder`, with another `waiting`, or with passes that sleep `pass_ms`.

    Passes that sleep run in one thread, since the sender needs a core.
    """
    for name in ("gen_guard", "guard_tokenizer", "classify"):
        shutil.copytree(repository / name, folder / name)
    config, model = (folder / "gen_guard" / name for name in ("config.pbtxt", "1/model.py"))
    if waiting is not None:
        config.write_text(re.sub(WAITING, rf"\g<1>{waiting}", config.read_text()))
    if pass_ms:
        config.write_text(re.sub(THREADS, r"\g<1>1", config.read_text()))
        model.write_text(model.read_text() + SLOW.format(seconds=pass_ms / 1e3))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--alone-s", type=float, default=20.0)
    parser.add_argument("--words", type=int, default=60, help="of each prompt")
    parser.add_argument("--measured", action="store_true", help="the conversation that guards.py's Gen can answer")
    parser.add_argument("--callers", type=int, default=4, help="that look for the sustainable rate")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--timeout-s", type=float, default=30.0)
    parser.add_argument("--waiting", type=int, help="instead of the repository's own")
    parser.add_argument("--pass-ms", type=float, default=0.0, help="that each pass sleeps, as on a device of its own")
    parser.add_argument("--grpc-port", type=int, default=8903)
    options = parser.parse_args()
    source = random.Random(1)
    words = ["how", "do", "I", "bake", "bread", "with", "flour", "and", "water", "on", "a", "quiet", "sunday"]
    texts: list[Turns] = [(" ".join(source.choices(words, k=options.words)) + "?",) for _ in range(4)]
    if options.measured:
        texts = [(PROMPT, RESPONSE)]
    with tempfile.TemporaryDirectory() as folder:
        models = changed(options.repository, Path(folder), options.waiting, options.pass_ms)
        ports = {"grpc_port": options.grpc_port, "metrics_port": options.grpc_port + 1}
        with EmbeddedServer(ServerSettings(models, **ports)) as server:
            with GuardClient(server.url, timeout_s=120, scope=None) as guard:
                server.wait_ready(lambda: canary.check(guard, server.manifests))
            memory = Memory(server.pid)
            memory.start()
            phases = in_a_process(load, server.url, texts, options)
            refused = counted(ports["metrics_port"])
            guards = [described(each) for each in server.manifests.values() if each.variant == "gen"]
        rows = {
            "guard": guards,
            "words": None if options.measured else options.words,
            "waiting": options.waiting,
            "pass_ms": options.pass_ms,
        }
        outcomes = [each for phase in phases.values() for each in phase]
        rows |= report(phases, memory)
        rows |= {"refused_in_all": sum(each.result == SHED for each in outcomes), "counted_by_server": refused}
    print(json.dumps(rows, indent=1))
    return 1 if rows["wrong_verdicts"] else 0


if __name__ == "__main__":
    sys.exit(main())
