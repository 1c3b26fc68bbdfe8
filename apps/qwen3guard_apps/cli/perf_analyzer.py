"""Runs perf_analyzer, Triton's own load generator, against a running server, and reads its profile.

It sends whole conversations to `classify` over gRPC, and sequences to `stream_step`: a step that opens the stream,
steps of one token at its position, and a step that ends it.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from qwen3guard_client.client import GuardClient
from qwen3guard_client.transport.address import PROXY_VARIABLES, is_local
from qwen3guard_client.transport.connection import GRPC_PREFIX, TOKEN_HEADER, Tls
from qwen3guard_contract import wire
from qwen3guard_contract.errors import PerfAnalyzerError

CONVERSATIONS: tuple[tuple[str, ...], ...] = (
    ("How do I bake bread?",),
    ("How do I bake bread?", "Mix flour, water, salt and yeast, wait, and bake it."),
    ("Write a letter to my landlord about the broken heating.",),
    ("Was ist der Unterschied zwischen einem Vulkan und einem Geysir?",),
    ("How can I pick the lock of my neighbour's door?", "I will not help to enter somebody else's home."),
    ("请用三句话介绍一下长城。", "长城是中国古代的军事防御工程。它绵延数千公里。今天它是世界文化遗产。"),
)
"""The conversations that are sent, each the turns of the user and the assistant."""
SHORT_PROMPT = "Hello."
"""The prompt that opens every stream. It is short, so that the server takes it in one turn: it might answer a longer
one with PENDING, and perf_analyzer cannot send a step again."""
WHEEL = "tritonclient==2.51.0"
"""A tritonclient whose wheel carries a perf_analyzer that runs with an older glibc (seen with 2.36)."""
RATE_STREAMS = 16
"""The streams at a time where requests arrive at random."""
ANY_PERCENT, TRIALS = 999, 3
"""perf_analyzer reports nothing where three windows differ by more percent than its limit. So the limit is out of
reach, and the percentiles here are over all three windows."""
ENDS_S = 100.0
"""How long perf_analyzer may take beside its windows, and the requests that are under way at the end of each."""


@dataclass(frozen=True)
class Load:
    """Either `concurrency` requests kept in flight, or requests that arrive at random at `rate` a second (Poisson)."""

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.rate:g}/s" if self.rate else f"{self.concurrency} at once"


@dataclass(frozen=True)
class LoadFigures:
    """The figures of one kind of request under one load: latencies in milliseconds, as perf_analyzer saw them."""

    work: str
    load: str
    requests: int
    per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float

    def as_line(self) -> str:
        return (
            f"{self.work:<16} {self.load:<12} {self.per_second:9.1f}/s   p50 {self.p50_ms:8.1f}   "
            f"p90 {self.p90_ms:8.1f}   p99 {self.p99_ms:8.1f} ms   ({self.requests} requests)"
        )


class Analyzer:
    """A perf_analyzer that runs here: the one on PATH, or else the one in WHEEL, which is fetched once into `cache`.

    `tls` and `token` give access to the server. The token stands on perf_analyzer's command line while that runs.
    Raises PerfAnalyzerError where none can be had.
    """

    def __init__(self, cache: Path | None = None, *, tls: Tls | None = None, token: str | None = None) -> None:
        self._tls, self._token = tls, token
        on_path = shutil.which("perf_analyzer")
        self._command, self._libraries = on_path, ""
        if not on_path or not self._runs():
            folder = cache or Path.home() / ".cache" / "qwen3guard" / "perf_analyzer"
            self._command, self._libraries = str(folder / "perf_analyzer"), str(folder)
            if not self._runs():
                _fetch(folder)
                if not self._runs():
                    raise PerfAnalyzerError("No perf_analyzer runs here; put one on PATH (pip install perf-analyzer).")

    def classify(
        self, url: str, load: Load, seconds: float, conversations: Iterable[Sequence[str]]
    ) -> list[LoadFigures]:
        with self._client(url) as guard:
            began = time.monotonic()
            guard.classify(CONVERSATIONS[0][0])  # our client explains better what is wrong with a server
            call_s = time.monotonic() - began
        data = [{wire.MESSAGES.name: [_messages(turns)]} for turns in conversations]
        requests, span_s = self._run(url, wire.CLASSIFY, data, load, seconds, call_s=call_s)
        return [_figures("classify", load, _latencies(requests), span_s)]

    def stream_step(self, url: str, load: Load, seconds: float, tokens: int) -> list[LoadFigures]:
        """Sends streams of `tokens` single-token steps; the figures of opening steps and of the others are apart."""
        began = time.monotonic()
        length = self._prompt_length(url)
        call_s = time.monotonic() - began
        ids = range(100, 100 + tokens)  # any valid tokens: the cost does not depend on them
        opening = {wire.PROMPT.name: [SHORT_PROMPT], wire.POSITION.name: [0]}
        steps = [
            {wire.TOKEN_IDS.name: {"content": [token], "shape": [1]}, wire.POSITION.name: [length + number]}
            for number, token in enumerate(ids)
        ]
        # perf_analyzer also sends the last step of a stream that it breaks off: it must be valid at any length.
        ending = {wire.POSITION.name: [0]}
        requests, span_s = self._run(url, wire.STREAM_STEP, [[opening, *steps, ending]], load, seconds, call_s=call_s)
        prefills = [request for request in requests if wire.PROMPT.name in request["request_inputs"]]
        token_steps = [request for request in requests if wire.TOKEN_IDS.name in request["request_inputs"]]
        return [
            _figures(name, load, _latencies(part), span_s)
            for name, part in (("stream prefill", prefills), ("stream step", token_steps))
            if part
        ]

    def _client(self, url: str) -> GuardClient:
        return GuardClient(url, wait_for_server=False, tls=self._tls, token=self._token)

    def _prompt_length(self, url: str) -> int:
        with self._client(url) as guard:
            session = str(uuid.uuid4())
            length = guard.stream_step(session, prompt=SHORT_PROMPT, start=True).length
            guard.stream_step(session, position=length, end=True)
        return length

    def _access_options(self) -> list[str]:
        options = ["-H", f"{GRPC_PREFIX}{TOKEN_HEADER}:{self._token}"] if self._token else []
        if self._tls:
            options += ["--ssl-grpc-use-ssl", "true"]
            files = {
                "root-certifications": self._tls.ca,
                "certificate-chain": self._tls.cert,
                "private-key": self._tls.key,
            }
            for name, file in files.items():
                options += [f"--ssl-grpc-{name}-file", str(file)] if file else []
        return options

    def _runs(self) -> bool:
        try:
            done = subprocess.run(
                [str(self._command), "--version"], env=self._environment(), capture_output=True, check=False
            )
        except OSError:
            return False
        return b"Perf Analyzer" in done.stdout + done.stderr

    def _environment(self) -> dict[str, str]:
        paths = [self._libraries, os.environ.get("LD_LIBRARY_PATH", "")]
        return os.environ | {"LD_LIBRARY_PATH": ":".join(filter(None, paths))}

    def _run(
        self, url: str, model: wire.Model, data: Sequence[Any], load: Load, seconds: float, *, call_s: float
    ) -> tuple[list[dict[str, Any]], float]:
        """Runs perf_analyzer; returns the answered requests of its last experiment, and their span in seconds. A lone
        request takes `call_s`."""
        patience_s = ENDS_S + TRIALS * (seconds + (load.concurrency or RATE_STREAMS) * call_s)
        with tempfile.TemporaryDirectory() as folder:
            inputs, profile = Path(folder) / "inputs.json", Path(folder) / "profile.json"
            inputs.write_text(json.dumps({"data": data}))
            command = [str(self._command), "-m", model.name, "-u", url, "-i", "grpc", "--input-data", str(inputs)]
            command += ["--profile-export-file", str(profile), "-p", str(int(1000 * seconds))]
            command += ["-s", str(ANY_PERCENT), "-r", str(TRIALS)]
            command += _load_options(load, sequences=model is wire.STREAM_STEP) + self._access_options()
            # perf_analyzer was seen to end after its measurement, before its profile was whole, and, on a busy machine,
            # not to end at all: try once more.
            hidden = (*PROXY_VARIABLES, "all_proxy") if is_local(url) else ()  # it reads metrics by curl too
            environment = {name: value for name, value in self._environment().items() if name.lower() not in hidden}
            for last in (False, True):
                profile.unlink(missing_ok=True)
                try:
                    done = subprocess.run(
                        command, env=environment, capture_output=True, text=True, check=False, timeout=patience_s
                    )
                except subprocess.TimeoutExpired:
                    if last:
                        raise PerfAnalyzerError(f"perf_analyzer did not end within {patience_s:.0f} s.") from None
                    continue
                experiment = _last_experiment(profile)
                if experiment and not done.returncode:
                    break
                if last or "throughput" not in done.stdout:
                    raise PerfAnalyzerError(f"perf_analyzer failed: {_reason(done.stdout + done.stderr)}")
        requests = [request for request in experiment["requests"] if request["response_timestamps"]]
        if not requests:
            raise PerfAnalyzerError("perf_analyzer measured no request.")
        ends = [request["response_timestamps"][-1] for request in requests]
        return requests, (max(ends) - min(request["timestamp"] for request in requests)) / 1e9


def _last_experiment(profile: Path) -> dict[str, Any]:
    """The profile's last experiment; empty where the profile is missing or cut."""
    try:
        experiment: dict[str, Any] = json.loads(profile.read_text())["experiments"][-1]
    except (OSError, ValueError, LookupError):
        return {}
    return experiment


def _messages(turns: Sequence[str]) -> str:
    """Turns of the user and the assistant as JSON messages in OpenAI's form."""
    roles = ("user", "assistant")
    return json.dumps([{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)])


def _load_options(load: Load, *, sequences: bool) -> list[str]:
    if load.rate:
        options = ["--request-rate-range", f"{load.rate:g}", "--request-distribution", "poisson", "--async"]
        # A stream sends one request at a time, since each names its position.
        return options + (
            ["--streaming", "--serial-sequences", "--num-of-sequences", str(RATE_STREAMS)] if sequences else []
        )
    return ["--concurrency-range", str(load.concurrency), "--sync"]


def _latencies(requests: Iterable[dict[str, Any]]) -> list[float]:
    """Each request's milliseconds."""
    return [(request["response_timestamps"][-1] - request["timestamp"]) / 1e6 for request in requests]


def _figures(work: str, load: Load, latencies: Sequence[float], span_s: float) -> LoadFigures:
    p50, p90, p99 = (round(float(value), 2) for value in np.percentile(latencies, (50, 90, 99)))
    return LoadFigures(work, str(load), len(latencies), round(len(latencies) / span_s, 2), p50, p90, p99)


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1]


def _fetch(folder: Path) -> None:
    """Puts perf_analyzer from WHEEL into `folder`, with copies of its two libraries, which the embedded server's wheel
    has: other environments use them too, after this one has gone."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as downloads:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", downloads]
        command += ["--platform", "manylinux1_x86_64", "--only-binary=:all:", WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(downloads).glob("*.whl"))
        if not wheels:
            raise PerfAnalyzerError(f"{WHEEL}, which carries perf_analyzer, cannot be had: {_reason(done.stderr)}")
        made = Path(downloads, "made")
        made.mkdir()
        for library, pattern in (("libb64.so.0d", "libb64-*.so.0d"), ("libcudart.so.12", "libcudart-*.so.12*")):
            for packages in site.getsitepackages():
                for path in Path(packages, "nvidia_pytriton.libs").glob(pattern):
                    shutil.copyfile(path, made / library)
        with zipfile.ZipFile(wheels[0]) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith("bin/perf_analyzer"))
            (made / "perf_analyzer").write_bytes(wheel.read(name))
        (made / "perf_analyzer").chmod(0o755)
        for file in made.iterdir():
            file.replace(folder / file.name)
