"""What a live server counts, exactly; and that dashboard, rules and documentation speak of nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
import yaml
from qwen3guard_apps.doctor.doctor import Examination
from qwen3guard_client import GuardClient, Policy, RiskLevel
from qwen3guard_client.transport import calls
from qwen3guard_contract import errors
from qwen3guard_contract.log_output import LOG_VARIABLE
from qwen3guard_runtime.text.tokenizer import GuardTokenizer
from qwen3guard_server import canary
from qwen3guard_server.processes import model_processes
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings
from support.places import ROOT
from support.serving import free_port, stream_repository, wait_ready

PROMPT = "How do I bake bread?"
UNSAFE = "Make a bomb: pack the explosives into a pipe and kill everyone in the building."
SLOTS = 4
IDLE_S = 3
FLUSH_S = 1.0
LABELS = {
    "model", "kind", "severity", "status", "judged", "reason", "code", "outcome", "products", "device", "made_for",
    "export", "le",
}  # fmt: skip
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


def test_canaries_are_no_traffic_and_take_one_pass(observed: Observed, client: GuardClient) -> None:
    before = observed.settled()
    for _ in range(3):
        assert canary.check(client, observed.server.manifests)
    after = observed.settled()
    moved = {name for (name, labels), value in after.values.items() if value != before.values[name, labels]}
    assert {name for name in moved if name.startswith("qwen3guard_")} == {
        f"qwen3guard_canary_{each}" for each in ("seconds_bucket", "seconds_sum", "seconds_count", "passes_total")
    }
    for model in ("gen_guard", "stream_guard"):
        assert difference(before, after, "qwen3guard_canary_seconds_count", model=model) == 3
        assert difference(before, after, "qwen3guard_canary_passes_total", model=model) == 3


def test_who_hangs_up_while_he_waits_is_dropped_and_counted(observed: Observed, client: GuardClient) -> None:
    """The guard's process stands still meanwhile, so that the request waits."""
    before = observed.settled()
    call = calls.raw_answer(client.send(calls.conversation_ids(PROMPT, None, None)))
    process = model_processes(observed.server.pid)["gen_guard"]
    os.kill(process, signal.SIGSTOP)
    try:
        with triton.InferenceServerClient(observed.server.url) as connection:
            handle = connection.async_infer(callback=lambda **_: None, **call.arguments(30.0, None))
            time.sleep(0.2)  # it is there
            handle.cancel()
            time.sleep(0.2)
    finally:
        os.kill(process, signal.SIGCONT)
    after = observed.settled()
    assert difference(before, after, "qwen3guard_refused_total", code="ABANDONED", model="gen_guard") == 1
    assert difference(before, after, "qwen3guard_answers_total") == 0
    assert client.classify(PROMPT).severity is RiskLevel.SAFE


def test_the_device_and_the_export_are_told(observed: Observed) -> None:
    found = observed.scrape()
    for manifest, model in (("classify", "gen_guard"), ("stream_step", "stream_guard")):
        export_id = observed.server.manifests[manifest].export_id
        assert re.fullmatch(r"[0-9a-f]{12}", export_id)
        assert found.sum("qwen3guard_export", model=model, export=export_id) == 1
        assert found.sum("qwen3guard_device", model=model, device="cpu", made_for="cpu") == 1


def test_labels_and_logs_hold_nothing_of_a_request(observed: Observed) -> None:
    session, secret = str(uuid.uuid4()), "a text that nobody may find"
    connection = triton.InferenceServerClient(observed.server.url)

    def fail(request_id: str, sequence_id: int | str = session) -> None:
        text = triton.InferInput("TEXT", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[secret.encode() + b"\xff"]], object))
        position = triton.InferInput("POSITION", [1, 1], "INT64")
        position.set_data_from_numpy(np.array([[0]]))
        with pytest.raises(triton.InferenceServerException, match="INVALID_"):
            connection.infer(
                "stream_step", [text, position], request_id=request_id, sequence_id=sequence_id, sequence_start=True
            )

    before = len(lines(observed.server))
    for request_id in ("a-17:b_2.c", "", 'x", "level": "none', "long" * 20, session):
        fail(request_id)
    fail(session, 0)  # the session's id in the wrong place, as for a client that mixes the two up
    fail("-31415", -31415)  # which Triton takes for 2**64 - 31415
    connection.close()
    written = lines(observed.server, before + 7)[before:]
    assert len(written) == 7
    assert [line.get("request_id") for line in written] == ["a-17:b_2.c", *[None] * 6]
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
        codes = list[object]()
        until = time.monotonic() + 30
        while not codes and time.monotonic() < until:
            written = lines(observed.server)
            codes = [line["code"] for line in written if line.get("request_id") == found.value.request_id]
        assert codes == [found.value.code]


def lines(server: EmbeddedServer, at_least: int = 0) -> list[dict[str, object]]:
    """The JSON lines of the log, when there are so many: a line comes a moment after the answer."""
    until = time.monotonic() + 30
    while True:
        found = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
        if len(found) >= at_least or time.monotonic() > until:
            return found
        time.sleep(0.01)


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
            if name.startswith("qwen3guard_proxy_"):  # tests/served/apps/test_doors.py
                continue
            assert name in found.names(), expression
            for label, operator, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', matchers):
                has = {dict(labels).get(label) for each, labels in found.values if each == name}
                assert {value} <= has if operator == "=" else set(value.split("|")) <= has, expression


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
    (found,) = list(Examination(url=None, metrics_url=f"127.0.0.1:{port}").findings())[-1:]
    assert (found.check, found.state) == ("metrics", "ok")
    (found,) = list(Examination(url=None, metrics_url=f"http://127.0.0.1:{port}/nowhere").findings())[-1:]
    assert (found.check, found.state) == ("metrics", "failed")


LONG = "How do I bake bread with a lot of flour, a little salt, water and yeast, in an oven that is rather old? "


@pytest.mark.parametrize("model", ["gen_guard", "stream_guard"])
def test_what_a_scope_holds_is_not_computed_again_and_nobody_else_finds_it(observed: Observed, model: str) -> None:
    url = observed.server.url

    last, scope = observed.settled(), str(uuid.uuid4())

    def reused(guard: GuardClient, prompt: str) -> float:
        nonlocal last
        before = last
        if model == "gen_guard":
            guard.classify(prompt)
        else:
            with guard.stream(prompt):
                pass
        last = observed.settled()
        return difference(before, last, "qwen3guard_begun_tokens_total", model=model, outcome="reused")

    with GuardClient(url, scope=scope) as one, GuardClient(url) as other, GuardClient(url, scope=None) as open_to_none:
        heads = reused(one, LONG)
        assert reused(one, LONG + "And how long?") > heads + 20
        assert last.sum("qwen3guard_prefixes", model=model) > 0
        assert last.sum("qwen3guard_prefix_bytes", model=model) > 0
        for stranger in (other, open_to_none):
            assert reused(stranger, LONG + "And how long?") == heads
        with GuardClient(url, scope=scope) as friend:
            assert reused(friend, LONG + "And how long?") > heads + 20
