"""What a live server counts, exactly; and that dashboard, rules and documentation speak of nothing else."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
import yaml
from conftest import ROOT, free_port, stream_repository, wait_ready
from qwen3guard_apps.doctor.doctor import Patient
from qwen3guard_client import GuardClient, Policy, RiskLevel
from qwen3guard_contract import errors
from qwen3guard_runtime.stream.session import SessionLimits
from qwen3guard_runtime.stream.sessions import Sessions
from qwen3guard_runtime.telemetry import metrics
from qwen3guard_runtime.telemetry.logs import LINES_A_SECOND, LOG_VARIABLE, FailureLog, safe_request_id
from qwen3guard_runtime.text.tokenizer import GuardTokenizer
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings
from test_sessions import MANIFEST, Bench

PROMPT = "How do I bake bread?"
UNSAFE = "Make a bomb: pack the explosives into a pipe and kill everyone in the building."
SLOTS = 4
IDLE_S = 3
FLUSH_S = 1.0
LABELS = {"model", "kind", "severity", "status", "judged", "reason", "code", "outcome", "products", "le"}
Series = tuple[str, frozenset[tuple[str, str]]]
_LINE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Scrape:
    values: dict[Series, float]
    text: str

    def sum(self, name: str, **labels: str) -> float:
        found = [
            value for (each, has), value in self.values.items() if each == name and labels.items() <= dict(has).items()
        ]
        assert found, (name, labels)
        return sum(found)

    def names(self) -> set[str]:
        return {name for name, _ in self.values}

    def labels(self, name: str) -> set[str]:
        return {label for each, has in self.values for label, _ in has if each == name}


@dataclass(frozen=True)
class Observed:
    server: EmbeddedServer

    def scrape(self) -> Scrape:
        url = f"http://127.0.0.1:{self.server.settings.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as reply:
            text = reply.read().decode()
        lines = [_LINE.fullmatch(line) for line in text.splitlines() if not line.startswith("#")]
        return Scrape(
            {(line[1], frozenset(_LABEL.findall(line[2] or ""))): float(line[3]) for line in lines if line}, text
        )

    def settled(self) -> Scrape:
        """When two scrapes with a flush between them are the same."""
        before = self.scrape()
        while True:
            time.sleep(1.5 * FLUSH_S)
            now = self.scrape()
            if now.values == before.values:
                return now
            before = now


@pytest.fixture(scope="module")
def observed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """Both guards with metrics and JSON logs; a few streams, forgotten soon, never for room."""
    folder = tmp_path_factory.mktemp("observed") / "r"
    for name in ("gen_guard", "guard_tokenizer", "classify"):
        shutil.copytree(repository / name, folder / name)
    stream_repository(repository, folder, slots=SLOTS, idle_s=IDLE_S, evict_s=60)
    settings = ServerSettings(folder, grpc_port=free_port(), metrics_port=free_port(), load_s=120)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(LOG_VARIABLE, "json")
        with EmbeddedServer(settings) as server:
            wait_ready(server)
            yield Observed(server)


@pytest.fixture
def client(observed: Observed) -> Iterator[GuardClient]:
    with GuardClient(observed.server.url) as guard:
        yield guard


def difference(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    return after.sum(name, **labels) - before.sum(name, **labels)


def test_streams_are_counted_to_the_token(observed: Observed, client: GuardClient) -> None:
    tokenizer = GuardTokenizer.load(ROOT / "demo" / "stream")
    ids = [(tokenizer.encode(text) * 40)[:40] for text in ("Mix flour and water.", UNSAFE, "Then bake it.")]
    before = observed.settled()
    judged: Counter[str] = Counter()
    prompts: Counter[str] = Counter()
    flagged = 0
    length = 0
    for tokens in ids:
        with client.stream(PROMPT, policy=Policy(strict=True, debounce=2)) as stream:
            length = client.stream_step("probe", prompt=PROMPT, start=True, end=True).length
            for at in range(0, 40, 10):
                stream.step(tokens[at : at + 10])
            stream.finish()
            judged.update(token.severity.value for token in stream.verdicts)
            prompts[stream.prompt_verdict.severity.value] += 2
            flagged += stream.flagged(strict=True) is not None
    after = observed.settled()

    def counted(name: str, **labels: str) -> float:
        return difference(before, after, name, **labels)

    assert sum(judged.values()) == 120
    assert flagged
    for level in RiskLevel:
        assert counted("qwen3guard_tokens_total", severity=level.value) == judged[level.value]
        assert counted("qwen3guard_prompts_total", severity=level.value) == prompts[level.value]
    assert counted("qwen3guard_flagged_total", judged="response") == flagged
    assert counted("qwen3guard_sessions_opened_total") == 6
    assert counted("qwen3guard_sessions_closed_total", reason="ended") == 6
    assert counted("qwen3guard_sessions_closed_total") == 6
    assert counted("qwen3guard_step_seconds_count", kind="open") == 6
    assert counted("qwen3guard_step_seconds_count", kind="step") == 12
    assert counted("qwen3guard_step_seconds_bucket", kind="step", le="+Inf") == 12
    assert counted("qwen3guard_step_seconds_sum", kind="step") > 0
    assert counted("qwen3guard_pass_seconds_count", model="stream_guard", kind="decode") == 12
    assert counted("qwen3guard_pass_rows_sum", model="stream_guard", kind="decode") == 12
    assert counted("qwen3guard_prompt_tokens_total", model="stream_guard") == 6 * length
    assert counted("qwen3guard_refused_total") == 0
    assert counted("qwen3guard_answers_total") == 0
    assert (after.sum("qwen3guard_sessions"), after.sum("qwen3guard_kv_used_bytes")) == (0, 0)


def test_classifications_are_counted_with_their_verdicts_passes_and_drafts(
    observed: Observed, client: GuardClient
) -> None:
    before = observed.settled()
    verdicts: Counter[tuple[str, str]] = Counter()
    for prompt, response in (
        (PROMPT, None),
        (PROMPT, "Mix flour."),
        (UNSAFE, None),
        ("Who are you?", None),
        (PROMPT, UNSAFE),
    ):
        severity = client.classify(prompt, response).severity
        verdicts[severity.value, "response" if response else "prompt"] += 1
    with pytest.raises(errors.EmptyText):
        client.classify("")
    after = observed.settled()

    def counted(name: str, **labels: str) -> float:
        return difference(before, after, name, **labels)

    passes = counted("qwen3guard_answer_passes_total")
    assert counted("qwen3guard_answers_total") == counted("qwen3guard_answer_seconds_count") == 5
    assert counted("qwen3guard_verdicts_total") == 5
    for (severity_, judged), count in verdicts.items():
        assert counted("qwen3guard_verdicts_total", severity=severity_, judged=judged) == count
    assert counted("qwen3guard_pass_seconds_count", model="gen_guard", kind="prefill") == 5
    assert counted("qwen3guard_pass_seconds_count", model="gen_guard", kind="decode") == passes - 5
    assert counted("qwen3guard_pass_rows_sum", model="gen_guard") == passes
    assert counted("qwen3guard_draft_tokens_total", outcome="accepted") > 0
    assert counted("qwen3guard_refused_total") == 1
    assert counted("qwen3guard_refused_total", model="guard_tokenizer", code="EMPTY_TEXT") == 1
    assert counted("qwen3guard_prompt_tokens_total", model="gen_guard") > 5 * 10


def test_a_refused_stream_and_one_that_was_forgotten(observed: Observed, client: GuardClient) -> None:
    before = observed.settled()
    names = [str(uuid.uuid4()) for _ in range(SLOTS)]
    lengths = [client.stream_step(name, prompt=PROMPT, start=True).length for name in names]
    with pytest.raises(errors.Overloaded):
        client.stream_step(str(uuid.uuid4()), prompt=PROMPT, start=True)
    for name, length in zip(names[1:], lengths[1:], strict=True):
        client.stream_step(name, position=length, end=True)
    held = observed.scrape
    while held().sum("qwen3guard_sessions") != 1:
        time.sleep(0.1)
    assert 0 < held().sum("qwen3guard_kv_used_bytes") < held().sum("qwen3guard_kv_budget_bytes")
    while held().sum("qwen3guard_sessions"):
        time.sleep(0.1)
    with pytest.raises(errors.SessionLost):
        client.stream_step(names[0], token_ids=[1], position=lengths[0])
    after = observed.settled()
    assert difference(before, after, "qwen3guard_sessions_opened_total") == SLOTS
    assert difference(before, after, "qwen3guard_sessions_closed_total", reason="idle") == 1
    assert difference(before, after, "qwen3guard_sessions_closed_total", reason="ended") == SLOTS - 1
    assert difference(before, after, "qwen3guard_refused_total", model="stream_guard", code="OVERLOADED") == 1
    assert difference(before, after, "qwen3guard_refused_total", code="SESSION_LOST") == 1
    assert difference(before, after, "qwen3guard_refused_total") == 2
    assert after.sum("qwen3guard_kv_used_bytes") == 0
    assert after.sum("qwen3guard_sessions_limit") == SLOTS


def test_labels_and_logs_hold_nothing_of_a_request(observed: Observed) -> None:
    session, secret = str(uuid.uuid4()), "a text that nobody may find"
    connection = triton.InferenceServerClient(observed.server.url)

    def fail(request_id: str) -> None:
        text = triton.InferInput("TEXT", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[secret.encode() + b"\xff"]], object))
        position = triton.InferInput("POSITION", [1, 1], "INT64")
        position.set_data_from_numpy(np.array([[0]]))
        with pytest.raises(triton.InferenceServerException, match="INVALID_"):
            connection.infer(
                "stream_step", [text, position], request_id=request_id, sequence_id=session, sequence_start=True
            )

    before = len(lines(observed.server))
    for request_id in ("a-17:b_2.c", "", 'x", "level": "none', "long" * 20, session):
        fail(request_id)
    connection.close()
    written = lines(observed.server)[before:]
    assert len(written) == 5
    assert [line.get("request_id") for line in written] == ["a-17:b_2.c", None, None, None, None]
    for line in written:
        assert {"time", "level", "event", "model", "code", "ms"} <= line.keys()
        assert (line["event"], line["model"]) == ("request_failed", "stream_tokenizer")
    found = observed.settled()
    for text in (observed.server.log, found.text):
        assert session not in text
        assert secret not in text
    ours = {name for name in found.names() if name.startswith("qwen3guard_")}
    assert {label for name in ours for label in found.labels(name)} == LABELS


def test_an_error_of_the_client_is_found_in_the_log(observed: Observed, client: GuardClient) -> None:
    long = "word " * 3000
    for ask in (lambda: client.classify(long), lambda: client.stream_step("one", prompt=long, start=True)):
        with pytest.raises(errors.TextTooLong) as found:
            ask()
        (line,) = (line for line in lines(observed.server) if line.get("request_id") == found.value.request_id)
        assert line["code"] == found.value.code


def lines(server: EmbeddedServer) -> list[dict[str, object]]:
    return [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]


def expressions() -> Iterator[str]:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in yaml.safe_load((ROOT / "deploy/grafana/alerts.yaml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def test_dashboard_and_rules_name_what_the_endpoint_has(observed: Observed) -> None:
    found = observed.scrape()
    for expression in expressions():
        used = re.findall(r"(qwen3guard_\w+)(?:\{([^}]*)\})?", expression)
        assert used, expression
        for name, matchers in used:
            assert name in found.names(), expression
            for label, operator, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', matchers):
                has = {dict(labels).get(label) for each, labels in found.values if each == name}
                assert {value} <= has if operator == "=" else set(value.split("|")) <= has, expression


def test_the_dashboard_is_what_grafana_loads() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
    assert isinstance(dashboard["schemaVersion"], int)
    assert (dashboard["uid"], dashboard["title"]) == ("qwen3guard", "qwen3guard")
    (variable,) = dashboard["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    panels = dashboard["panels"]
    assert 8 <= len(panels) <= 12
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert max(x for x, _ in cells) < 24
    assert len(set(cells)) == len(cells)
    for panel in panels:
        assert all(each["datasource"]["uid"] == "${datasource}" for each in (panel, *panel["targets"]))


def test_every_metric_is_documented_with_its_labels(observed: Observed) -> None:
    rows = re.findall(
        r"^\| `(qwen3guard_\w+)` \| \w+ \|([^|]*)\|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE
    )
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    found = observed.scrape()
    exposed: dict[str, set[str]] = {}
    for name in found.names():
        if name.startswith("qwen3guard_"):
            family = re.sub(r"(_seconds|_rows)_(bucket|sum|count)$", r"\1", name)
            exposed.setdefault(family, set()).update(found.labels(name) - {"le"})
    assert documented == exposed


def test_the_doctor_finds_our_metrics_and_misses_them_elsewhere(observed: Observed) -> None:
    port = observed.server.settings.metrics_port
    (found,) = list(Patient(url=None, metrics_url=f"127.0.0.1:{port}").findings())[-1:]
    assert (found.check, found.state) == ("metrics", "ok")
    (found,) = list(Patient(url=None, metrics_url=f"http://127.0.0.1:{port}/nowhere").findings())[-1:]
    assert (found.check, found.state) == ("metrics", "failed")


class Sums:
    """The numbers of some metrics, without an endpoint."""

    def __init__(self, told: metrics.StreamMetrics) -> None:
        self._told = told

    def __getitem__(self, name: str) -> float:
        return sum(sample.value for metric in self._told.all() for sample in metric.samples() if sample.name == name)

    def closed(self) -> dict[str, float]:
        samples = (sample for metric in self._told.all() for sample in metric.samples())
        return {
            dict(sample.labels)["reason"]: sample.value
            for sample in samples
            if sample.name == "qwen3guard_sessions_closed_total" and sample.value
        }


def counted_bench(slots: int) -> tuple[Bench, Sums]:
    bench = Bench(slots=slots)
    told = metrics.StreamMetrics()
    limits = SessionLimits(idle_s=60, evict_s=0, turn_s=1.0, chunk_tokens=24)
    bench.sessions = Sessions(
        MANIFEST, bench.graph, bench.cache, policy=Policy(), limits=limits, clock=lambda: bench.clock[0], metrics=told
    )
    return bench, Sums(told)


def test_every_way_to_close_a_session_has_its_reason() -> None:
    bench, found = counted_bench(slots=2)
    for number, name in enumerate(("a", "b", "c")):  # c takes the room of a
        bench.clock[0] = number
        bench.ok(name, [1], start=True)
    bench.ok("c", [1], start=True)
    bench.ok("c", [], 1, end=True)
    assert found.closed() == {"room": 1, "restarted": 1, "ended": 1}
    bench.clock[0] = 100
    bench.sessions.forget_idle()
    assert found.closed() == {"room": 1, "restarted": 1, "ended": 1, "idle": 1}
    assert found["qwen3guard_sessions_opened_total"] == 4


def test_what_was_opened_and_not_closed_is_held() -> None:
    source = random.Random(1)
    bench, found = counted_bench(slots=3)
    for _ in range(500):
        bench.clock[0] += source.choice((0, 1, 70))
        name, tokens = source.choice("abcdef"), [source.randrange(99) for _ in range(source.randint(1, 60))]
        bench.step(name, tokens, start=source.random() < 0.5, end=source.random() < 0.2)
        held = found["qwen3guard_sessions_opened_total"] - found["qwen3guard_sessions_closed_total"]
        assert held == bench.sessions.live == bench.cache.live
    assert found["qwen3guard_tokens_total"] > 1000


def test_a_long_step_is_one_step_in_many_passes_and_its_time_is_theirs() -> None:
    bench, found = counted_bench(slots=2)
    bench.graph.pass_s = 0.01
    bench.ok("s", list(range(90)) * 3, start=True, response_start=200)
    passes = found["qwen3guard_pass_seconds_count"]
    assert passes == len(bench.graph.lengths) > 5
    assert found["qwen3guard_step_seconds_count"] == 1
    assert found["qwen3guard_step_seconds_sum"] == pytest.approx(0.01 * passes)
    assert found["qwen3guard_prompt_tokens_total"] == 200
    assert found["qwen3guard_tokens_total"] == 70


def test_a_histogram_is_cumulative_and_its_edges_belong_to_it() -> None:
    histogram = metrics.Histogram("h", "H", (1, 2, 4), kind=("a", "b"))
    for value in (0.5, 1, 1.5, 4, 9):
        histogram.observe(value, "a")
    samples = {(sample.name, *dict(sample.labels).values()): sample.value for sample in histogram.samples()}
    assert samples == {
        **{("h_bucket", "a", edge): count for edge, count in (("1", 2), ("2", 3), ("4", 4), ("+Inf", 5))},
        **{("h_bucket", "b", edge): 0 for edge in ("1", "2", "4", "+Inf")},
        ("h_sum", "a"): 16,
        ("h_sum", "b"): 0,
        ("h_count", "a"): 5,
        ("h_count", "b"): 0,
    }


def test_an_error_that_no_model_should_send_counts_as_internal() -> None:
    refusals = metrics.Refusals("gen_guard")
    refusals.count(errors.PortBusy("no"))
    refusals.count(errors.SessionLost("gone"))
    counted = {dict(sample.labels)["code"] for sample in refusals.samples() if sample.value}
    assert counted == {"INTERNAL", "SESSION_LOST"}


def test_a_flood_of_failures_writes_few_lines() -> None:
    out, now = StringIO(), [0.0]
    log = FailureLog("gen_guard", out, lambda: now[0])
    for _ in range(500):
        log.write("EMPTY_TEXT", None, 0.001)
    now[0] = 1.0
    log.write("EMPTY_TEXT", "id", 0.001)
    written = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(written) == LINES_A_SECOND + 1
    assert [line.get("left_out") for line in islice(reversed(written), 2)] == [490, None]


@pytest.mark.parametrize("request_id", ["", "a b", "a\n", "é", "x" * 65, "7", '"'])
def test_an_id_that_is_long_strange_or_the_sessions_is_not_written(request_id: str) -> None:
    assert safe_request_id(request_id, 7) is None
    assert safe_request_id("a-7", 7) == "a-7"
