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
"""A round is so many classifications of texts that differ, or TIMED_STEPS steps of one token."""
TIMED_STEPS = 60
ROUNDS = 5
ENOUGH_S = 20.0
"""After so many seconds there is no further round."""
WARM = 2
"""So many calls before the first round are not timed."""
ANSWER_S = 600.0
LOAD_S = 300.0
SERVED, IN_PROCESS = "a server on this machine, through gRPC", "in this process, without a server"


@dataclass(frozen=True)
class Timing:
    """The median time of a call in milliseconds, in the quietest of some `rounds` of `calls` calls each: other work on
    the machine only makes it longer. A call is a classification for Gen, and a step of one token for Stream.

    `where` is SERVED or IN_PROCESS, and `why` says why there was no server.
    """

    p50_ms: float
    calls: int
    rounds: int
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
            return _of([partial(_classify, guard, text) for text in spread(texts, TIMED_CALLS)], SERVED)
        session = str(uuid.uuid4())
        opening = replace(texts[0], response=None)
        length = guard.stream_step(session, messages=opening.messages, start=True).length
        step = partial(guard.stream_step, session, token_ids=[token], position=length)
        timing = _of([step] * TIMED_STEPS, SERVED)
        guard.stream_step(session, position=length, end=True)
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
            [partial(_judge, judge, text) for text in spread(texts, TIMED_CALLS)],
            IN_PROCESS,
            why,
        )
    opening = judge.tokenize(replace(texts[0], response=None))
    ids = opening.ids
    judge.step(Step(SESSION, ids, 0, start=True, query_index=opening.query_index, response_start=len(ids)))
    one = np.array([token], np.int64)
    timing = _of([partial(judge.step, Step(SESSION, one, len(ids)))] * TIMED_STEPS, IN_PROCESS, why)
    judge.step(Step(SESSION, one[:0], len(ids), end=True))
    return timing


def _judge(judge: GenJudge, text: SampleText) -> object:
    return judge.judge(judge.tokenize(text))


def _of(calls: Sequence[Callable[[], object]], where: str, why: str = "") -> Timing:
    for call in calls[:WARM]:
        call()
    medians: list[float] = []
    began = time.perf_counter()
    while len(medians) < ROUNDS and time.perf_counter() - began < ENOUGH_S:
        medians.append(float(np.median([_ms(call) for call in calls])))
    return Timing(min(medians), len(calls), len(medians), where, why)


def _ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
