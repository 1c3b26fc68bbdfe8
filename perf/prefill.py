"""How much slower the steps of other sessions are while the server takes in a long prompt.

    .venv/bin/python perf/prefill.py MODEL_REPOSITORY [--tokens 4096] [--others 4] [--context 256]

Serves the repository's stream guard. `--others` sessions step one token at a time as fast as they can: first alone,
then while one session opens with a prompt of `--tokens` tokens, then alone again. Prints the percentiles and their
ratio.
"""

from __future__ import annotations

import argparse
import itertools
import json
import threading
import time
import uuid
from pathlib import Path

import numpy as np
from qwen3guard_client import GuardClient
from qwen3guard_contract.manifest import Manifest
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings

TIMEOUT_S = 1200.0


class Stepper(threading.Thread):
    """One session that writes single tokens, all at the same position, so that every step costs the same.

    `times` has a pair for each step: when it was sent, and how many seconds it took.
    """

    def __init__(self, url: str, seed: int, context: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.ids = np.random.default_rng(seed).integers(0, 1000, 100000).tolist()
        self.context = context
        self.stop = stop
        self.times: list[tuple[float, float]] = []

    def run(self) -> None:
        session = str(uuid.uuid4())
        with GuardClient(self.url, timeout_s=TIMEOUT_S, scope=None) as guard:
            length = guard.stream_step(session, prompt="Hello.", start=True).length
            length = guard.stream_step(session, token_ids=self.ids[: self.context], position=length).length
            for token in self.ids[self.context :]:
                if self.stop.is_set():
                    break
                began = time.perf_counter()
                guard.stream_step(session, token_ids=[token], position=length)
                self.times.append((began, time.perf_counter() - began))
            guard.stream_step(session, position=length, end=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--others", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--alone-s", type=float, default=20.0)
    parser.add_argument("--grpc-port", type=int, default=8901)
    arguments = parser.parse_args()
    with EmbeddedServer(ServerSettings(arguments.repository, grpc_port=arguments.grpc_port)) as server:
        manifests = {name: each for name, each in server.manifests.items() if each.variant == "stream"}
        with GuardClient(server.url, timeout_s=TIMEOUT_S, scope=None) as guard:
            server.wait_ready(lambda: canary.check(guard, manifests))
            measure(guard, arguments, manifests["stream_step"])


def measure(guard: GuardClient, arguments: argparse.Namespace, manifest: Manifest) -> None:
    prompt = prompt_of(guard, arguments.tokens)
    stop = threading.Event()
    others = [Stepper(guard.url, seed, arguments.context, stop) for seed in range(arguments.others)]
    for stepper in others:
        stepper.start()
    while not all(stepper.times for stepper in others):
        time.sleep(0.1)
    marks = [time.perf_counter()]
    time.sleep(arguments.alone_s)
    marks.append(time.perf_counter())
    with guard.stream(prompt) as stream:
        assert stream.prompt_verdict
        marks.append(time.perf_counter())
    time.sleep(arguments.alone_s)
    marks.append(time.perf_counter())
    stop.set()
    for stepper in others:
        stepper.join()
    steps = [step for stepper in others for step in stepper.times]
    spans = [[1e3 * took for at, took in steps if one <= at < other] for one, other in itertools.pairwise(marks)]
    before, during, after = ({f"p{q}": round(float(np.percentile(span, q)), 1) for q in (50, 99)} for span in spans)
    alone = float(np.percentile(spans[0] + spans[2], 99))
    results = {
        "guard": f"{manifest.source}, {manifest.weights}, {manifest.layers} layers",
        "others": arguments.others,
        "prompt_tokens": arguments.tokens,
        "prefill_s": round(marks[2] - marks[1], 1),
        "steps": [len(span) for span in spans],
        "before_ms": before,
        "during_ms": during,
        "after_ms": after,
        "p99_ratio": round(during["p99"] / alone, 2),
    }
    print(json.dumps(results, indent=1))


def prompt_of(guard: GuardClient, tokens: int) -> str:
    """A prompt of about `tokens` tokens, its template included."""
    with guard.stream("word " * 100) as stream:
        first = stream.step("x").length
    with guard.stream("word " * 200) as stream:
        tokens_a_word = (stream.step("x").length - first) / 100
    return "word " * (100 + int((tokens - first) / tokens_a_word))


if __name__ == "__main__":
    main()
