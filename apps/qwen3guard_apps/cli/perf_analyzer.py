"""perf_analyzer, Triton's own load generator, on a running server: its data, its run, and what its profile says.

It speaks gRPC to `classify` with whole conversations and to `stream_step` with sequences: a step that opens the stream,
one token a step at its position, and a step that ends it.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from qwen3guard_client.client import GuardClient
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
"""What is sent: turns of the user and the assistant."""
SHORT_PROMPT = "Hello."
"""Opens every stream: short, so that the server takes it in one turn. Of a longer one it might answer with PENDING, and
perf_analyzer cannot send a step again."""
WHEEL = "tritonclient==2.51.0"
"""A tritonclient whose wheel carries a perf_analyzer that runs with an older glibc (seen with 2.36)."""
ANY_PERCENT, TRIALS = 999, 3
"""perf_analyzer gives nothing where three windows differ by more; we tell percentiles over all three instead."""


@dataclass(frozen=True)
class Load:
    """Requests kept in flight, or a rate that arrives at random (Poisson); one of the two."""

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.rate:g}/s" if self.rate else f"{self.concurrency} at once"


@dataclass(frozen=True)
class Figures:
    """One kind of request under one load; milliseconds as perf_analyzer saw them."""

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
    """A perf_analyzer that runs here: the one on PATH, or else the one in WHEEL, fetched once into `cache`.

    `tls` and `token` are the server's; the token stands on perf_analyzer's command line while it runs.
    """

    def __init__(self, cache: Path | None = None, *, tls: Tls | None = None, token: str | None = None) -> None:
        self._tls, self._token = tls, token
        found = shutil.which("perf_analyzer")
        self._command, self._libraries = found, ""
        if not found or not self._runs():
            folder = cache or Path.home() / ".cache" / "qwen3guard" / "perf_analyzer"
            self._command, self._libraries = str(folder / "perf_analyzer"), str(folder)
            if not self._runs():
                _fetch(folder)
                if not self._runs():
                    raise PerfAnalyzerError("No perf_analyzer runs here; put one on PATH (pip install perf-analyzer).")

    def classify(self, url: str, load: Load, seconds: float, conversations: Iterable[Sequence[str]]) -> list[Figures]:
        with self._client(url) as guard:
            guard.classify(CONVERSATIONS[0][0])  # whatever is wrong with the server is told better by ourselves
        data = [{wire.MESSAGES.name: [messages(turns)]} for turns in conversations]
        requests, span_s = self._run(url, wire.CLASSIFY, data, load, seconds)
        return [_figures("classify", load, _latencies(requests), span_s)]

    def stream_step(self, url: str, load: Load, seconds: float, tokens: int) -> list[Figures]:
        """Streams of `tokens` single-token steps each; opening steps and the others apart."""
        length = self._prompt_length(url)
        ids = range(100, 100 + tokens)  # any valid ones; what they say does not change what they cost
        opened = {wire.PROMPT.name: [SHORT_PROMPT], wire.POSITION.name: [0]}
        steps = [
            {wire.TOKEN_IDS.name: {"content": [token], "shape": [1]}, wire.POSITION.name: [length + number]}
            for number, token in enumerate(ids)
        ]
        # perf_analyzer sends the last step of every stream it breaks off, so that one must be right at any length.
        ended = {wire.POSITION.name: [0]}
        requests, span_s = self._run(url, wire.STREAM_STEP, [[opened, *steps, ended]], load, seconds)
        prefills = [each for each in requests if wire.PROMPT.name in each["request_inputs"]]
        others = [each for each in requests if wire.TOKEN_IDS.name in each["request_inputs"]]
        return [
            _figures(name, load, _latencies(part), span_s)
            for name, part in (("stream prefill", prefills), ("stream step", others))
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
        self, url: str, model: wire.Model, data: Sequence[Any], load: Load, seconds: float
    ) -> tuple[list[dict[str, Any]], float]:
        """The requests of the profile's last experiment, and the seconds in which they were sent."""
        with tempfile.TemporaryDirectory() as folder:
            inputs, profile = Path(folder) / "inputs.json", Path(folder) / "profile.json"
            inputs.write_text(json.dumps({"data": data}))
            command = [str(self._command), "-m", model.name, "-u", url, "-i", "grpc", "--input-data", str(inputs)]
            command += ["--profile-export-file", str(profile), "-p", str(int(1000 * seconds))]
            command += ["-s", str(ANY_PERCENT), "-r", str(TRIALS)]
            command += _load_options(load, sequences=model is wire.STREAM_STEP) + self._access_options()
            for last in (False, True):  # it was seen to measure, and then to end before its profile was whole
                profile.unlink(missing_ok=True)
                done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
                experiment = _last_experiment(profile)
                if experiment and not done.returncode:
                    break
                if last or "throughput" not in done.stdout:
                    raise PerfAnalyzerError(f"perf_analyzer failed: {_reason(done.stdout + done.stderr)}")
        requests = [each for each in experiment["requests"] if each["response_timestamps"]]
        if not requests:
            raise PerfAnalyzerError("perf_analyzer measured no request.")
        ends = [each["response_timestamps"][-1] for each in requests]
        return requests, (max(ends) - min(each["timestamp"] for each in requests)) / 1e9


def _last_experiment(profile: Path) -> dict[str, Any]:
    """Empty where the profile is missing or cut."""
    try:
        found: dict[str, Any] = json.loads(profile.read_text())["experiments"][-1]
    except (OSError, ValueError, LookupError):
        return {}
    return found


def messages(turns: Sequence[str]) -> str:
    """Turns of the user and the assistant in OpenAI's form."""
    roles = ("user", "assistant")
    return json.dumps([{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)])


def _load_options(load: Load, *, sequences: bool) -> list[str]:
    if load.rate:
        options = ["--request-rate-range", f"{load.rate:g}", "--request-distribution", "poisson", "--async"]
        # one request of a stream at a time, since each says where it stands
        return options + (["--streaming", "--serial-sequences", "--num-of-sequences", "16"] if sequences else [])
    return ["--concurrency-range", str(load.concurrency), "--sync"]


def _latencies(requests: Iterable[dict[str, Any]]) -> list[float]:
    """Milliseconds."""
    return [(each["response_timestamps"][-1] - each["timestamp"]) / 1e6 for each in requests]


def _figures(work: str, load: Load, latencies: Sequence[float], span_s: float) -> Figures:
    p50, p90, p99 = (round(float(value), 2) for value in np.percentile(latencies, (50, 90, 99)))
    return Figures(work, str(load), len(latencies), round(len(latencies) / span_s, 2), p50, p90, p99)


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower()]
    return (told or lines or ["it said nothing"])[-1]


def _fetch(folder: Path) -> None:
    """Takes perf_analyzer out of WHEEL, and its two libraries from the embedded server's wheel."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as downloads:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", downloads]
        command += ["--platform", "manylinux1_x86_64", "--only-binary=:all:", WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(downloads).glob("*.whl"))
        if not wheels:
            raise PerfAnalyzerError(f"{WHEEL}, which carries perf_analyzer, cannot be had: {_reason(done.stderr)}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith("bin/perf_analyzer"))
            (folder / "perf_analyzer").write_bytes(wheel.read(name))
    (folder / "perf_analyzer").chmod(0o755)
    for library, pattern in (("libb64.so.0d", "libb64-*.so.0d"), ("libcudart.so.12", "libcudart-*.so.12*")):
        for packages in site.getsitepackages():
            for found in Path(packages, "nvidia_pytriton.libs").glob(pattern):
                (folder / library).unlink(missing_ok=True)
                (folder / library).symlink_to(found)
