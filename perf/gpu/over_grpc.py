"""The guards through gRPC: the embedded server on the card, and a client on the same machine.

    python perf/gpu/over_grpc.py [--size 0.6B] [--weights fp16] [--fake]

Exports both guards with their proof, serves them, and times `classify` of 330 tokens (201 held) and steps of 1 to 64
streams at 512 tokens of context. It needs what `qwen3guard serve` needs besides: nvidia-pytriton and Python's shared
library. With --fake, the guards are small ones in fp32 on the CPU.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

from figures import WEIGHTS, parser, read, say, summary
from guards import PROMPT, RESPONSE
from prepared import answering, checkpoint, is_outdated, mark
from product import TIMEOUT_S, Session, classify_ms, run_at_once, served
from qwen3guard_client import GuardClient
from qwen3guard_export import export
from qwen3guard_export.repository import place_models

CONTEXT = 512
STREAMS = ((1, 1), (1, 4), (1, 16), (8, 1), (64, 1), (64, 16))
"""Each the number of streams and the tokens of a step."""
SECONDS, CLASSIFICATIONS = 5.0, 200
FAKE_STREAMS, FAKE_SECONDS, FAKE_CLASSIFICATIONS = ((1, 1), (2, 16)), 0.3, 3


def repository(arguments_folder: Path, size: str, weights: str, *, fake: bool) -> Path:
    """A model repository with both guards; each is exported if it is missing or outdated."""
    target = arguments_folder / f"served-{'fake' if fake else ''}{size}-{weights}"
    sources = [answering(arguments_folder, size, fake=fake), checkpoint(arguments_folder, size, "stream", fake=fake)]
    for source, name in zip(sources, ("gen_guard", "stream_guard"), strict=True):
        if not is_outdated(target / name / "1"):
            continue
        began = time.perf_counter()
        form = {"weights": "fp32", "attention": "portable"} if fake else {"weights": weights, "attention": "paged"}
        manifest = export(str(source), target, **form, say=lambda _: None)
        place_models(target, manifest)
        mark(target / name / "1")
        say("export", size=size, variant=manifest.variant, seconds=time.perf_counter() - began)
    return target


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def classify(url: str, count: int, named: dict[str, str]) -> None:
    with GuardClient(url, timeout_s=TIMEOUT_S, scope=None) as guard:
        taken = [classify_ms(guard, PROMPT, RESPONSE) for _ in range(count + 10)][10:]
    say("classify over gRPC", **named, **summary(taken))


def streams(url: str, sessions: int, tokens: int, seconds: float, named: dict[str, str]) -> None:
    opened = [Session(url, CONTEXT) for _ in range(sessions)]
    steps = [lambda each=each: each.step(tokens) for each in opened]  # type: ignore[misc]
    for step in steps:
        step()
    rate, taken = run_at_once(steps, seconds)
    say(
        "stream_step over gRPC",
        **named,
        sessions=sessions,
        context=CONTEXT,
        k=tokens,
        tokens_s=rate * tokens,
        **summary(taken),
    )
    for each in opened:
        each.close()


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", choices=("0.6B",), default="0.6B")
    made.add_argument("--weights", choices=WEIGHTS, default="fp16")
    arguments = read(made)
    named = {"size": arguments.size, "weights": arguments.weights}
    models = repository(arguments.folder, arguments.size, arguments.weights, fake=arguments.fake)
    with ExitStack() as stack:
        began = time.perf_counter()
        server = stack.enter_context(served(models, free_port()))
        say("ready", **named, seconds=time.perf_counter() - began)
        classify(server.url, FAKE_CLASSIFICATIONS if arguments.fake else CLASSIFICATIONS, named)
        for sessions, tokens in FAKE_STREAMS if arguments.fake else STREAMS:
            streams(server.url, sessions, tokens, FAKE_SECONDS if arguments.fake else SECONDS, named)


if __name__ == "__main__":
    main()
