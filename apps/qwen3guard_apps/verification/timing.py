"""How long a classification or a step takes on this machine: through a real server where one can be started, else in
this process."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from qwen3guard_client import GuardClient
from qwen3guard_contract.errors import GuardError, ServeError
from qwen3guard_contract.manifest import Manifest
from qwen3guard_runtime.stream.steps import Step

from qwen3guard_apps.verification.judges import SESSION, GenJudge, StreamJudge
from qwen3guard_apps.verification.texts import SampleText, spread

TIMED_CALLS = 20
"""So many classifications are timed, of texts that differ, after two more that are not."""
TIMED_STEPS = 60
"""So many steps of one token are timed."""
WARM = 2
ANSWER_S = 600.0
LOAD_S = 300.0
SERVED, IN_PROCESS = "a server on this machine, through gRPC", "in this process, without a server"


@dataclass(frozen=True)
class Timing:
    """The median of `calls` calls in milliseconds: of a classification for Gen, of a step of one token for Stream.
    `where` is SERVED or IN_PROCESS, and `why` says why there was no server."""

    p50_ms: float
    calls: int
    where: str
    why: str = ""


def served(repository: Path, manifest: Manifest, texts: Sequence[SampleText], token: int) -> Timing:
    """Starts the embedded server on the models in `repository` and asks it. `token` is what the steps write.

    Raises a GuardError where it cannot be started or asked.
    """
    try:  # these need Linux and the extra `serve`
        from qwen3guard_export.repository import place_models
        from qwen3guard_server import canary
        from qwen3guard_server.server import EmbeddedServer
        from qwen3guard_server.settings import ServerSettings
    except ImportError as missing:
        raise ServeError(f"{missing.name} is not installed") from None
    place_models(repository, manifest)
    settings = ServerSettings(repository, grpc_port=_free_port(), load_s=LOAD_S)
    with EmbeddedServer(settings) as server, GuardClient(server.url, timeout_s=ANSWER_S, scope=None) as guard:
        server.wait_ready(lambda: canary.check(guard, server.manifests))
        if manifest.variant == "gen":
            return _of([partial(_classify, guard, text) for text in spread(texts, WARM + TIMED_CALLS)], SERVED)
        session = str(uuid.uuid4())
        opening = replace(texts[0], response=None)
        length = guard.stream_step(session, messages=opening.messages, start=True).length
        steps = range(length, length + WARM + TIMED_STEPS)
        calls = [partial(guard.stream_step, session, token_ids=[token], position=at) for at in steps]
        timing = _of(calls, SERVED)
        guard.stream_step(session, position=steps.stop, end=True)
        return timing


def _classify(guard: GuardClient, text: SampleText) -> object:
    try:
        return guard.classify(messages=text.messages)
    except GuardError as error:  # an answer that cannot be read took as long
        return error


def in_process(judge: GenJudge | StreamJudge, texts: Sequence[SampleText], token: int, why: str = "") -> Timing:
    """Times the judge itself, tokenization included."""
    if isinstance(judge, GenJudge):
        return _of(
            [partial(_judge, judge, text) for text in spread(texts, WARM + TIMED_CALLS)],
            IN_PROCESS,
            why,
        )
    opening = judge.tokenize(replace(texts[0], response=None))
    ids = opening.ids
    judge.step(Step(SESSION, ids, 0, start=True, query_index=opening.query_index, response_start=len(ids)))
    one = np.array([token], np.int64)
    steps = range(len(ids), len(ids) + WARM + TIMED_STEPS)
    timing = _of([partial(judge.step, Step(SESSION, one, at)) for at in steps], IN_PROCESS, why)
    judge.step(Step(SESSION, one[:0], steps.stop, end=True))
    return timing


def _judge(judge: GenJudge, text: SampleText) -> object:
    return judge.judge(judge.tokenize(text))


def _of(calls: Sequence[Callable[[], object]], where: str, why: str = "") -> Timing:
    times = []
    for call in calls:
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    counted = times[WARM:] or times
    return Timing(float(np.median(counted)), len(counted), where, why)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
