"""What is counted and logged, without a server."""

from __future__ import annotations

import json
import random
import time
from itertools import islice

import pytest
from qwen3guard_client import Policy
from qwen3guard_contract import errors
from qwen3guard_runtime.stream.session import SessionLimits
from qwen3guard_runtime.stream.sessions import Sessions
from qwen3guard_runtime.telemetry import metrics
from qwen3guard_runtime.telemetry.logs import LINES_A_SECOND, FailureLog, safe_request_id
from qwen3guard_runtime.triton.metrics_endpoint import MetricsEndpoint
from support.places import ROOT
from support.token_sum import MANIFEST, Bench


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
    limits = SessionLimits(idle_s=60, evict_s=0, turn_s=1.0, chunk_tokens=24, alone_tokens=24)
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
    expected: dict[tuple[str, ...], float] = {
        **{("h_bucket", "a", edge): count for edge, count in (("1", 2), ("2", 3), ("4", 4), ("+Inf", 5))},
        **{("h_bucket", "b", edge): 0 for edge in ("1", "2", "4", "+Inf")},
        ("h_sum", "a"): 16,
        ("h_sum", "b"): 0,
        ("h_count", "a"): 5,
        ("h_count", "b"): 0,
    }
    assert samples == expected


class Series:
    """A series of Triton's metrics, whose server may be away."""

    def __init__(self) -> None:
        self.value = 0.0
        self.away = False

    def increment(self, change: float) -> None:
        if self.away:
            raise RuntimeError
        self.value += change

    set = increment


class Family:
    def __init__(self, series: Series) -> None:
        self._series = series

    def Metric(self, **_: object) -> Series:  # noqa: N802 (Triton's name)
        return self._series


def test_metrics_that_cannot_be_sent_are_sent_later(caplog: pytest.LogCaptureFixture) -> None:
    counter, series = metrics.Counter("c", "C"), Series()
    endpoint = MetricsEndpoint([counter], lambda _: Family(series))
    for away in (True, False):
        series.away = away
        counter.add(by=3)
        deadline = time.monotonic() + 30
        while not (caplog.records if away else series.value) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == ["metrics cannot be sent: RuntimeError"]
    assert series.value == 6
    series.away = True
    counter.add()
    endpoint.close()


def test_lines_of_the_log_that_were_dropped_are_counted() -> None:
    dropped = [0]
    refusals = metrics.Refusals("gen_guard", lambda: dropped[0])
    dropped[0] = 7
    (found,) = (sample for sample in refusals.samples() if sample.name == "qwen3guard_log_dropped_total")
    assert (found.kind, found.value, found.labels) == ("counter", 7, (("model", "gen_guard"),))


def test_an_error_that_no_model_should_send_counts_as_internal() -> None:
    refusals = metrics.Refusals("gen_guard")
    refusals.count(errors.PortBusy("no"))
    refusals.count(errors.SessionLost("gone"))
    counted = {dict(sample.labels)["code"] for sample in refusals.samples() if sample.value}
    assert counted == {"INTERNAL", "SESSION_LOST"}


def test_a_flood_of_failures_writes_few_lines() -> None:
    out, now = list[str](), [0.0]
    log = FailureLog("gen_guard", out.append, lambda: now[0])
    for _ in range(500):
        log.note("EMPTY_TEXT", None, 0.001)
    now[0] = 1.0
    log.note("EMPTY_TEXT", "id", 0.001)
    written = [json.loads(line) for line in out]
    assert len(written) == LINES_A_SECOND + 1
    assert [line.get("left_out") for line in islice(reversed(written), 2)] == [490, None]


@pytest.mark.parametrize("request_id", ["", "a b", "a\n", "é", "x" * 65, "7", '"'])
def test_an_id_that_is_long_strange_or_the_sessions_is_not_written(request_id: str) -> None:
    assert safe_request_id(request_id, 7) is None
    assert safe_request_id("a-7", 7) == "a-7"


@pytest.mark.parametrize(
    ("request_id", "session"),
    [
        ("abc-1", "abc-1"), ("abc-1", " abc-1"), ("ABC-1", "abc-1"), ("abc1", "abc-1"), ("step:abc-1:4", "abc-1"),
        ("a" * 64, "a" * 128), ("-1", 2**64 - 1), ("18446744073709551615", 2**64 - 1),
    ],
)  # fmt: skip
def test_an_id_that_tells_the_sessions_is_not_written(request_id: str, session: int | str) -> None:
    assert safe_request_id(request_id, session) is None
    for other in ("", "xyz", 0, 5):
        assert safe_request_id(request_id, other) == request_id


def test_a_refused_canary_is_no_refused_request() -> None:
    refusals = metrics.Refusals("gen_guard")
    refusals.count(errors.Overloaded("no"), canary=True)
    counted = {sample.name for sample in refusals.samples() if sample.value}
    assert counted == {"qwen3guard_canaries_refused_total"}


def test_a_canary_counts_as_one_pass_and_as_nothing_else() -> None:
    bench, found = counted_bench(slots=2)
    bench.ok("user", [1], start=True)
    before = {sample.name: sample.value for metric in found._told.all() for sample in metric.samples()}
    for _ in range(2):
        reply = bench.ok("canary", list(range(40)), start=True, end=True, canary=True)
        assert (reply.length, reply.pending) == (40, 0)
    after = {sample.name: sample.value for metric in found._told.all() for sample in metric.samples()}
    moved = {name for name, value in after.items() if value != before[name]}
    assert {name for name in moved if not name.startswith("qwen3guard_canary_")} == set()
    assert (found["qwen3guard_canary_passes_total"], found["qwen3guard_canary_seconds_count"]) == (2, 2)
    bench.ok("canary", list(range(64)) * 2, start=True, end=True, canary=True)
    assert found["qwen3guard_canary_passes_total"] > 3  # a long one takes no more at once than others
