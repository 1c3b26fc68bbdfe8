"""Measures the table of docs/performance.md: the product beside its peers, on this machine, in one run.

    .venv/bin/python perf/table.py [--runs 1] [--rounds 5] [--folder build/perf]

The product is measured through gRPC, and each peer without a server, in its own process. They take turns, round after
round, so that a disturbance of the machine affects all of them. A row names the precision in which a peer was fastest
here; the other medians are in `notes`. With several runs, each starts all anew, and a row has the median of their
values. Writes perf/results/latest.json and a file named after the time and the CPU; `met` says whether `at_least`
holds. perf/report.py makes the page of it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import floor
import guards
import numpy as np
import product
from guards import Guards
from peer import Peer, environment
from product import Session, median, run_at_once
from qwen3guard_client import GuardClient
from qwen3guard_contract.errors import UnreadableAnswer
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.messages import Message
from qwen3guard_server.installation import HUGE_PAGES

RESULTS = Path(__file__).parent / "results"
ANSWER_TOKENS = 12
CONTEXTS = (512, 2048)
CURVE = (256, 512, 1024, 2048, 4096)
CALLERS = (1, 2, 4, 8, 16)
CALLERS_S = 12.0
PAIRS = 60
"""Pairs of a served and a bare step. They are compared one by one, because their difference is small beside the
noise."""
PAUSE_S = 0.02
"""The pause between two engines, so that no thread of one still spins while the other is timed."""

TRANSFORMERS, OPENVINO, LLAMA, GENAI, OPTIMUM = (
    "transformers", "OpenVINO", "llama.cpp", "onnxruntime-genai", "Optimum",
)  # fmt: skip
ENVIRONMENTS = {
    TRANSFORMERS: "transformers",
    OPENVINO: "openvino",
    LLAMA: "llama",
    GENAI: "builder",
    OPTIMUM: "optimum",
}
PRECISIONS = (
    f"{TRANSFORMERS} bf16", f"{TRANSFORMERS} fp32", f"{OPENVINO} bf16", f"{OPENVINO} int8", f"{LLAMA} Q8_0",
    f"{LLAMA} Q4_K_M", f"{GENAI} int4", f"{OPTIMUM} fp32",
)  # fmt: skip
KEEP_PREFIXES = (LLAMA, GENAI)
"""The peers that are used with a cache of what was computed before; they are given what the product holds."""

Times = dict[str, list[float]]
Wanted = tuple[float | None, float | None]
"""The bound of a row (`at_least`), and its aim."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    With the unit "x", `value` is how many times as fast the product is as the peer. With another unit less is better,
    and `at_least` and `aim` are upper bounds.
    """

    row: str
    work: str
    peer: str
    value: float
    at_least: float | None
    aim: float | None
    unit: str = "x"
    ours: float | None = None
    theirs: float | None = None
    values: tuple[float, ...] = ()
    """Of the runs."""

    @property
    def met(self) -> bool | None:
        if self.at_least is None:
            return None
        return self.value >= self.at_least if self.unit == "x" else self.value <= self.at_least


class Run:
    def __init__(self, guards: Guards, rounds: int) -> None:
        self.guards = guards
        self.rounds = rounds
        self.rows: list[Row] = []
        self.curves: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}
        self.floor = floor.probe()

    def measure_all(self) -> None:
        self.classify()
        self.rejected()
        self.stream()
        self.rows.sort(key=lambda row: (int(row.row.rstrip("abc")), row.row))

    # Gen ------------------------------------------------------------------------------------------------------

    def classify(self) -> None:
        manifest = Manifest.read(self.guards.version("gen"))
        ids = guards.rendered(self.guards.checkpoint("gen"), guards.SHORT)
        say(f"classify: {len(ids)} tokens and {ANSWER_TOKENS} of answer; {product.described(manifest)}")
        with ExitStack() as stack:
            server = stack.enter_context(product.served(self.guards.repository("gen")))
            guard = stack.enter_context(GuardClient(server.url, timeout_s=product.TIMEOUT_S, scope=None))
            peers = self.peers(stack, "gen")
            engines: dict[str, Callable[[], float]] = {
                "product": lambda: product.classify_ms(guard, guards.PROMPT, guards.RESPONSE)
            }
            for name, peer in peers.items():
                held = {"held": guards.PREFIX_TOKENS} if name.startswith(KEEP_PREFIXES) else {}
                engines[name] = lambda p=peer, h=held: p.ms("classify", ids=ids, answer=ANSWER_TOKENS, **h)  # type: ignore[misc]
            times = self.turns("classify", engines, {"product": 4})
            work = "classify, 330 tokens (201 held), 12 answer tokens, draft accepted"
            self.against("1", work, times, TRANSFORMERS, (9, 15))
            self.against("2", work, times, OPENVINO, (7, 12))
            for letter, family in zip("abc", (LLAMA, GENAI, OPTIMUM), strict=True):
                self.against(f"2{letter}", work, times, family)
            ours = median(times["product"])
            tokens = len(ids) - guards.PREFIX_TOKENS + ANSWER_TOKENS
            least = 1e3 * floor.classify_seconds(
                manifest, self.floor, begin=guards.PREFIX_TOKENS, tokens=tokens, answer=ANSWER_TOKENS
            )
            self.add(
                Row("11b", "classify against its floor", "the floor", ours / least, 2.0, 2.0, "x floor", ours, least)
            )
            self.chat_answer(guard, peers)
        with product.served(self.guards.repository("gen")) as server, ExitStack() as stack:
            clients = [
                stack.enter_context(GuardClient(server.url, timeout_s=product.TIMEOUT_S, scope=None)) for _ in range(8)
            ]
            calls = [lambda one=one: product.classify_ms(one, guards.PROMPT, guards.RESPONSE) for one in clients]
            rates = self.rates(calls, (1, 8), "classify")
            self.add(
                Row("8", "classify, 8 clients at once, requests/s", "1 client", rates[8] / rates[1], None, 1.8, "x",
                    rates[8], rates[1])
            )  # fmt: skip

    def chat_answer(self, guard: GuardClient, peers: dict[str, Peer]) -> None:
        """The answer of a chat's last turn; those before were judged, and what was computed for them is held."""
        before, now = guards.chat(guards.TURNS - 1), guards.chat()
        ids, held = self.ids("gen", before, now)

        def ours() -> float:
            scoped = guard.in_scope(str(uuid.uuid4()))
            with contextlib.suppress(UnreadableAnswer):  # Gen's random weights answer for the last turn alone
                scoped.classify(messages=spoken(before))
            began = time.perf_counter()
            scoped.classify(messages=spoken(now))
            return 1e3 * (time.perf_counter() - began)

        engines = {"product": ours}
        for name, peer in peers.items():
            if name.startswith(KEEP_PREFIXES):
                engines[name] = lambda p=peer: p.ms("classify", ids=ids, answer=ANSWER_TOKENS, held=held)  # type: ignore[misc]
        work = f"chat turn {guards.TURNS}: classify of {len(ids):,} tokens ({held:,} held)"
        self.beside_caches("13a", work, engines)

    def beside_caches(self, row: str, work: str, engines: dict[str, Callable[[], float]]) -> None:
        times = self.turns(work, engines, {})
        self.against(row, work, times, LLAMA, (2.0, 2.0))
        self.against(row, work, times, GENAI)

    def ids(self, name: str, before: Sequence[Message], now: Sequence[Message]) -> tuple[list[int], int]:
        """The token ids of a conversation, and how many of them those of a former one begin with."""
        one, other = (guards.rendered(self.guards.checkpoint(name), each) for each in (before, now))
        return other, guards.shared(one, other)

    def rejected(self) -> None:
        """Measures classify where two decisions of the answer are not the drafted ones."""
        with (
            product.served(self.guards.repository("gen_rejected")) as server,
            GuardClient(server.url, timeout_s=product.TIMEOUT_S, scope=None) as guard,
        ):
            times = [product.classify_ms(guard, guards.PROMPT, guards.RESPONSE) for _ in range(4 * self.rounds)]
        self.notes["classify_rejected_ms"] = round(median(times), 1)
        say(f"classify, draft rejected twice: {median(times):.0f} ms")

    # Stream ---------------------------------------------------------------------------------------------------

    def stream(self) -> None:
        manifest = Manifest.read(self.guards.version("stream"))
        say(f"stream_step: {product.described(manifest)}")
        with ExitStack() as stack:
            server = stack.enter_context(product.served(self.guards.repository("stream")))
            peers = self.peers(stack, "stream")
            sessions = {context: Session(server.url, context) for context in CONTEXTS}
            cached: dict[tuple[int, int], Times] = {}
            for context, tokens in ((512, 1), (2048, 1), (512, 16)):
                engines: dict[str, Callable[[], float]] = {"product": lambda c=context, t=tokens: sessions[c].step(t)}  # type: ignore[misc]
                for name, peer in peers.items():
                    engines[name] = lambda p=peer, c=context, t=tokens: p.ms("step", context=c, tokens=t)  # type: ignore[misc]
                cached[context, tokens] = self.turns(f"step {tokens} @{context}", engines, dict.fromkeys(engines, 5))
            self.steps(cached)
            loop = peers[fastest(cached[512, 16], TRANSFORMERS)]
            for row, context, wanted in (("4a", 512, (14, 25)), ("4b", 2048, (50, 100))):
                self.reforward(row, wanted, loop, context, sessions[context])
            ours = median(cached[512, 1]["product"])
            least = 1e3 * floor.step_seconds(manifest, self.floor, 512)
            self.add(Row("11a", "step of 1 token at 512, against its floor", "the floor", ours / least, 2.2, 1.5,
                         "x floor", ours, least))  # fmt: skip
            for session in sessions.values():
                session.close()
            with GuardClient(server.url, timeout_s=product.TIMEOUT_S, scope=None) as guard:
                self.starts(guard, {name: peer for name, peer in peers.items() if name.startswith(KEEP_PREFIXES)})
        with product.served(self.guards.repository("stream")) as server:
            self.overhead(server.url)
            self.sessions(server.url, server.pid)

    def steps(self, cached: dict[tuple[int, int], Times]) -> None:
        wanted: dict[str, tuple[str, str, Wanted, Wanted]] = {
            TRANSFORMERS: ("3", "6", (3.5, 4.0), (2.5, 4.0)),
            OPENVINO: ("5", "6", (1.6, 2.0), (2.5, 3.0)),
            LLAMA: ("14", "14", (1.0, 1.15), (None, None)),
            GENAI: ("14", "14", (None, None), (None, None)),
            OPTIMUM: ("14", "14", (None, None), (None, None)),
        }
        for (context, tokens), times in cached.items():
            work = f"stream_step, {tokens} at context {context}"
            for family, (one, many, for_one, for_many) in wanted.items():
                letter = "a" if context == 512 else "b"
                if tokens == 1:
                    self.against(one + letter, work, times, family, for_one)
                else:
                    self.against(many + ("c" if many == "14" else letter), work, times, family, for_many)

    def starts(self, guard: GuardClient, peers: dict[str, Peer]) -> None:
        """A long START of which nothing is held, and that of a chat's last turn."""
        before, now = guards.chat(guards.TURNS - 1)[:-1], guards.chat()[:-1]
        ids, held = self.ids("stream", before, now)

        def whole() -> float:
            return product.start_ms(guard, spoken(now))

        def last() -> float:
            scoped = guard.in_scope(str(uuid.uuid4()))
            product.start_ms(scoped, spoken(before))
            return product.start_ms(scoped, spoken(now))

        engines: dict[str, Callable[[], float]] = {"product": whole}
        engines |= {name: lambda p=peer: p.ms("prefill", ids=ids) for name, peer in peers.items()}  # type: ignore[misc]
        work = f"START of {len(ids):,} tokens, nothing held"
        times = self.turns(work, engines, {})
        self.against("12", work, times, LLAMA, (1.0, 1.2))
        self.against("12", work, times, GENAI)
        engines = {"product": last}
        engines |= {name: lambda p=peer: p.ms("prefill", ids=ids, held=held) for name, peer in peers.items()}  # type: ignore[misc]
        self.beside_caches("13b", f"chat turn {guards.TURNS}: START of {len(ids):,} tokens ({held:,} held)", engines)

    def reforward(self, row: str, wanted: Wanted, peer: Peer, context: int, session: Session) -> None:
        theirs = min(peer.ms("reforward", context=context, tokens=1) for _ in range(2 if context == 512 else 1))
        ours = median([session.step() for _ in range(9)])
        name = f"the published loop, {peer.name.removeprefix(TRANSFORMERS).strip()}"
        work = f"stream_step, 1 at context {context}"
        self.add(Row(row, work, name, theirs / ours, *wanted, "x", ours, theirs))

    def overhead(self, url: str) -> None:
        """Measures what Triton, Python, gRPC and the client add to the bare engine; no other peer is in memory."""
        folder, session, pairs = self.guards.version("stream"), Session(url, 512), []
        log = self.log("engine")
        with Peer("engine", Path(sys.executable), "bare_engine.py", str(folder), log=log, **HUGE_PAGES) as bare:
            bare.ms("step", context=512, tokens=1)
            for _ in range(PAIRS):
                time.sleep(PAUSE_S)
                one = session.step()
                time.sleep(PAUSE_S)
                pairs.append((one, bare.ms("step", context=512, tokens=1)))
        session.close()
        served, alone = (median(list(each)) for each in zip(*pairs, strict=True))
        difference = median([one - other for one, other in pairs])
        self.add(Row("9", "served step minus the bare engine's, p50, ms", "the bare engine", difference, 2.0, 1.0, "ms",
                     served, alone))  # fmt: skip

    def sessions(self, url: str, pid: int) -> None:
        held = [Session(url, 512) for _ in range(max(CALLERS))]
        rates = self.rates([one.step for one in held], CALLERS, "sessions")
        self.add(Row("7", "16 live sessions, 1 token each, tokens/s", "1 session", rates[16] / rates[1], 3.5, 4.5, "x",
                     rates[16], rates[1]))  # fmt: skip
        memory = product.guard_bytes(pid) / 2**30
        self.add(Row("10", "memory of the Stream process, 16 sessions at 512 tokens, GiB", "", memory, 1.7, 1.1, "GiB"))
        for one in held:
            one.close()
        session = Session(url, CURVE[0])
        self.curves["context"] = []
        for context in CURVE:
            session.grow(context)
            times = {tokens: median([session.step(tokens) for _ in range(7)]) for tokens in (1, 16)}
            self.curves["context"].append([context, times[1], times[16]])
            say(f"step at {context}: 1 token {times[1]:.1f} ms, 16 tokens {times[16]:.1f} ms")
        session.close()

    # shared by the rows ------------------------------------------------------------------------------------------

    def peers(self, stack: ExitStack, variant: str) -> dict[str, Peer]:
        """Starts all peers, by their names with the precision; they end with `stack`."""
        gen, stream = (str(self.guards.checkpoint(name)) for name in ("gen", "stream"))
        peers = {}
        for name in PRECISIONS:
            family, precision = name.split()
            home = ENVIRONMENTS[family]
            python = environment(home, self.guards.folder / "environments")
            other = stream if family == TRANSFORMERS else str(self.guards.folder / home)
            log = self.log(f"{name}-{variant}")
            peers[name] = stack.enter_context(Peer(name, python, f"with_{home}.py", gen, other, precision, log=log))
        if variant == "gen":
            precisions = {name: peer.ask("precision")["precision"] for name, peer in peers.items() if OPENVINO in name}
            self.notes["openvino_inference_precision"] = precisions
        return peers

    def turns(self, work: str, engines: dict[str, Callable[[], float]], samples: dict[str, int]) -> Times:
        """Each engine's milliseconds, measured in turns after a warm-up; an engine has `samples` calls in each turn."""
        times: Times = {name: [] for name in engines}
        for number in range(1 + self.rounds):
            for name, call in engines.items():
                time.sleep(PAUSE_S)
                measured = [call() for _ in range(samples.get(name, 1))]
                if number:
                    times[name] += measured
        medians = {name: round(median(measured), 1) for name, measured in times.items()}
        self.notes.setdefault("median_ms", {})[work] = medians
        say(f"{work}: " + ", ".join(f"{name} {took:.1f} ms" for name, took in medians.items()))
        return times

    def rates(self, calls: list[Callable[[], float]], sizes: tuple[int, ...], name: str) -> dict[int, float]:
        """Calls a second by the number of callers at once; each number is measured twice, in turns."""
        for call in calls:
            call()
        rates: dict[int, list[float]] = {size: [] for size in sizes}
        p50: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(2):
            for size in sizes:
                rate, times = run_at_once(calls[:size], CALLERS_S / 2)
                rates[size].append(rate)
                p50[size] += times
        means = {size: float(np.mean(each)) for size, each in rates.items()}
        self.curves[name] = [[size, means[size], median(p50[size])] for size in sizes]
        say(f"{name}: " + ", ".join(f"{size}: {rate:.2f}/s" for size, rate in means.items()))
        return means

    def against(self, row: str, work: str, times: Times, family: str, wanted: Wanted = (None, None)) -> None:
        """Adds a row beside the fastest precision of a family of peers."""
        peer = fastest(times, family)
        ours, theirs = median(times["product"]), median(times[peer])
        self.add(Row(row, work, peer, theirs / ours, *wanted, "x", ours, theirs))

    def add(self, row: Row) -> None:
        self.rows.append(row)
        bound = "" if row.at_least is None else f" (wanted {row.at_least}: {'met' if row.met else 'NOT MET'})"
        say(f"  row {row.row}, {row.work}, against {row.peer}: {row.value:.2f} {row.unit}{bound}")

    def log(self, name: str) -> Path:
        return self.guards.folder / "logs" / f"{name.replace(' ', '-')}.log"

    def result(self) -> dict[str, Any]:
        return {
            "rows": [_as_json(row) for row in self.rows],
            "machine": describe_machine() | {"floor": {name: _rounded(value) for name, value in self.floor.items()}},
            "versions": installed_versions(self.guards),
            "curves": self.curves,
            "notes": self.notes,
        }


def fastest(times: Times, family: str) -> str:
    return min((name for name in times if name.startswith(family)), key=lambda name: median(times[name]))


def spoken(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as a client sends them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def together(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result of several runs. A row is of all runs in which its peer was the fastest of its family, and has the
    median of their values."""
    last = dict(results[-1])
    rows = []
    for row in last["rows"]:
        same = [
            other
            for result in results
            for other in result["rows"]
            if (other["row"], other["peer"]) == (row["row"], row["peer"])
        ]
        known = [name for name in ("value", "ours", "theirs") if row[name] is not None]
        medians = {name: median([other[name] for other in same]) for name in known}
        fields = {name: each for name, each in row.items() if name != "met"} | medians
        rows.append(_as_json(Row(**fields | {"values": tuple(other["value"] for other in same)})))
    return last | {"rows": rows, "notes": last["notes"] | {"runs": len(results)}}


def _as_json(row: Row) -> dict[str, Any]:
    return {key: _rounded(value) for key, value in (asdict(row) | {"met": row.met}).items()}


def describe_machine() -> dict[str, Any]:
    facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = [name for name in facts.get("flags", "").split() if name.startswith(("avx512_", "amx", "avx_vnni"))]
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "cpu": facts.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "flags": flags,
        "memory_gib": round(int(memory) / 2**20, 1),
        "system": platform.platform(),
        "threads": floor.THREADS,
    }


def installed_versions(guards: Guards) -> dict[str, Any]:
    packages = ("qwen3guard-triton", "onnxruntime", "tritonclient", "nvidia-pytriton", "numpy", "tokenizers")
    versions: dict[str, Any] = {name: metadata.version(name) for name in packages} | {
        "python": platform.python_version()
    }
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    versions["commit"] = done.stdout.strip()
    for name in ENVIRONMENTS.values():
        versions[name] = (guards.folder / "environments" / name / "made-from.txt").read_text().split()
    return versions


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("build/perf"))
    arguments = parser.parse_args()
    prepared, results = guards.prepare(arguments.folder), []
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%MZ")
    for _ in range(arguments.runs):
        run = Run(prepared, arguments.rounds)
        run.measure_all()
        results.append(run.result())
        result = together(results)
        cpu = re.sub(r"\W+", "-", result["machine"]["cpu"]).strip("-")
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(result, indent=1) + "\n"
        for name in (f"{stamp}-{cpu}.json", "latest.json"):
            (RESULTS / name).write_text(text)


if __name__ == "__main__":
    main()
