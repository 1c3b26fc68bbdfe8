"""The product as a client sees it: serves with the embedded Triton, and times calls over gRPC in this process."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from qwen3guard_client import GuardClient
from qwen3guard_contract.manifest import Manifest
from qwen3guard_server import canary
from qwen3guard_server.processes import model_processes, resident_bytes
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings

TIMEOUT_S = 1200.0
PORT = 8911
TOKENS = range(1000, 100000)


@contextmanager
def served(repository: Path, port: int = PORT) -> Iterator[EmbeddedServer]:
    with (
        EmbeddedServer(ServerSettings(repository, grpc_port=port)) as server,
        GuardClient(server.url, timeout_s=TIMEOUT_S, scope=None) as guard,
    ):
        server.wait_ready(lambda: canary.check(guard, server.manifests))
        yield server


class Session:
    """A stream with `context` tokens; every step is written at the position after them, so the context stays."""

    def __init__(self, url: str, context: int) -> None:
        self._guard = GuardClient(url, timeout_s=TIMEOUT_S, scope=None)
        self._session = str(uuid.uuid4())
        self.length = self._guard.stream_step(self._session, prompt="Hello.", start=True).length
        self.grow(context)

    def grow(self, context: int) -> None:
        if context > self.length:
            ids = TOKENS[self.length : context]
            self.length = self._guard.stream_step(self._session, token_ids=ids, position=self.length).length
        assert self.length == context

    def step(self, tokens: int = 1) -> float:
        """Writes `tokens` after the context; returns the milliseconds."""
        began = time.perf_counter()
        reply = self._guard.stream_step(self._session, token_ids=TOKENS[:tokens], position=self.length)
        took = time.perf_counter() - began
        assert len(reply.tokens) == tokens
        return 1e3 * took

    def close(self) -> None:
        self._guard.stream_step(self._session, position=self.length, end=True)
        self._guard.close()


def classify_ms(guard: GuardClient, prompt: str, response: str) -> float:
    began = time.perf_counter()
    guard.classify(prompt=prompt, response=response)
    return 1e3 * (time.perf_counter() - began)


def start_ms(guard: GuardClient, messages: list[dict[str, str]]) -> float:
    """The opening of a stream, with the verdict on its last prompt."""
    stream = guard.stream(messages=messages)
    began = time.perf_counter()
    stream.__enter__()
    took = time.perf_counter() - began
    stream.finish()
    return 1e3 * took


def run_at_once(calls: Sequence[Callable[[], float]], seconds: float) -> tuple[float, list[float]]:
    """Repeats each call in a thread of its own, all at the same time.

    Returns the calls a second of all threads together, and the milliseconds of each call.
    """
    times: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()

    def repeat(call: Callable[[], float], own_times: list[float]) -> None:
        while time.perf_counter() < began + seconds:
            own_times.append(call())

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip(calls, times, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [took for own_times in times for took in own_times]
    return len(done) / (time.perf_counter() - began), done


def guard_bytes(pid: int) -> int:
    """The resident bytes of the guard's process, which holds the weights and the KV; it is the server's largest."""
    return max(models_bytes(pid).values())


def models_bytes(pid: int) -> dict[str, int]:
    """The resident bytes of each model's process of the server, by the model's name."""
    return {model: resident_bytes(process) for model, process in model_processes(pid).items()}


def median(values: list[float]) -> float:
    return float(np.median(values))


def described(manifest: Manifest) -> str:
    return f"{manifest.weights}, KV {manifest.form.kv_dtype}, {manifest.layers} layers of {manifest.hidden_size}"
