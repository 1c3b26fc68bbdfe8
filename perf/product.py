"""The product as a client sees it: the embedded Triton, and calls over gRPC, timed in this process."""

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
from qwen3guard_server.server import EmbeddedServer, model_processes, resident_bytes
from qwen3guard_server.settings import ServerSettings

TIMEOUT_S = 1200.0
PORT = 8911
TOKENS = range(1000, 100000)


@contextmanager
def served(repository: Path) -> Iterator[EmbeddedServer]:
    with (
        EmbeddedServer(ServerSettings(repository, grpc_port=PORT)) as server,
        GuardClient(server.url, timeout_s=TIMEOUT_S) as guard,
    ):
        server.wait_ready(lambda: canary.check(guard, server.manifests))
        yield server


class Session:
    """A stream held at `context` tokens: steps are written behind them, each at the same place."""

    def __init__(self, url: str, context: int) -> None:
        self._guard = GuardClient(url, timeout_s=TIMEOUT_S)
        self._session = str(uuid.uuid4())
        self.length = self._guard.stream_step(self._session, prompt="Hello.", start=True).length
        self.grow(context)

    def grow(self, context: int) -> None:
        if context > self.length:
            ids = TOKENS[self.length : context]
            self.length = self._guard.stream_step(self._session, token_ids=ids, position=self.length).length
        assert self.length == context

    def step(self, tokens: int = 1) -> float:
        """Milliseconds."""
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


def crowd(calls: Sequence[Callable[[], float]], seconds: float) -> tuple[float, list[float]]:
    """Each call repeated by a thread of its own, all at once: calls a second in all, and each one's milliseconds."""
    times: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()

    def work(call: Callable[[], float], mine: list[float]) -> None:
        while time.perf_counter() < began + seconds:
            mine.append(call())

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, times, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [took for mine in times for took in mine]
    return len(done) / (time.perf_counter() - began), done


def guard_bytes(pid: int) -> int:
    """Resident memory of the guard's own process among the server's, the one that holds weights and KV."""
    return max(models_bytes(pid).values())


def models_bytes(pid: int) -> dict[str, int]:
    """Resident bytes of each process that the server has for a model, by the model's name."""
    return {model: resident_bytes(process) for model, process in model_processes(pid).items()}


def median(values: list[float]) -> float:
    return float(np.median(values))


def described(manifest: Manifest) -> str:
    return f"{manifest.weights}, KV {manifest.form.kv_dtype}, {manifest.layers} layers of {manifest.hidden_size}"
