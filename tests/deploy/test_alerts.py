"""The rules for Prometheus in its own promtool: what they take for a fleet's fault, and what they leave alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from support.places import ROOT

RULES = ROOT / "deploy" / "grafana" / "alerts.yaml"
OLD, NEW = "000000000001", "000000000002"
CPU, GPU, FELL_BACK = ("cpu", "cpu"), ("cuda", "cuda"), ("cpu", "cuda")
LATE_MINUTES = 70


def promtool() -> str:
    if found := shutil.which("promtool"):
        return found
    if os.environ.get("CI"):
        pytest.fail("There is no promtool: apt-get install prometheus.")
    pytest.skip("There is no promtool here; with it (apt-get install prometheus) these tests run.")


def export(replica: int, digits: str, job: str = "one") -> str:
    return f'qwen3guard_export{{job="{job}",instance="{replica}",model="gen_guard",export="{digits}"}}'


def device(replica: int, runs_on: str, made_for: str, job: str = "one") -> str:
    labels = f'job="{job}",instance="{replica}",model="gen_guard",device="{runs_on}",made_for="{made_for}"'
    return f"qwen3guard_device{{{labels}}}"


def firing(folder: Path, alert: str, series: Iterable[tuple[str, str]], minutes: int = LATE_MINUTES) -> bool:
    """Whether promtool sees `alert` fire after `minutes` of these series, each with its values a minute apart."""
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "alert_rule_test": [{"alertname": alert, "eval_time": f"{minutes}m", "exp_alerts": []}],
    }
    file = folder / "rules.test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [case]}))
    said = subprocess.run([promtool(), "test", "rules", file], capture_output=True, text=True, check=False)
    told = said.stdout + said.stderr
    assert said.returncode == 0 or f"alertname: {alert}" in told, told
    return said.returncode != 0


def test_promtool_reads_every_rule() -> None:
    said = subprocess.run([promtool(), "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


STAYS, GOES, COMES = "1x90", "1x20 _x70", "_x20 1x70"


def up(replica: int, values: str, job: str = "one") -> tuple[str, str]:
    return f'up{{job="{job}",instance="{replica}"}}', values


def loaded(replica: int, values: str, job: str = "one") -> tuple[str, str]:
    return f'qwen3guard_load_timestamp_seconds{{job="{job}",instance="{replica}",model="gen_guard"}}', values


@pytest.mark.parametrize(
    ("series", "fires"),
    [
        ([up(0, "1x90"), loaded(0, "7x90"), up(1, "1x90"), loaded(1, "7x90")], False),
        ([up(0, "1x90"), loaded(0, "7x90"), up(1, "1x20 0x70"), loaded(1, "7x20 stale")], True),
        ([up(0, "1x90"), loaded(0, "7x90"), up(1, "0x90")], True),
        ([up(0, "1x90"), loaded(0, "7x90"), up(1, "1x65 0x3 1x20"), loaded(1, "7x65 _x3 9x20")], False),
        ([up(0, "1x90"), loaded(0, "7x90"), up(1, "_x62 0x6 1x20"), loaded(1, "_x69 9x20")], False),
        ([up(0, "1x90"), loaded(0, "7x90"), up(1, "1x20 stale"), loaded(1, "7x20 stale")], False),
        ([up(0, "1x90"), loaded(0, "7x90"), up(0, "0x90", "other")], False),
    ],
    ids=["both", "one has gone", "one never came", "a restart", "one loads", "scaled in", "another job"],
)
def test_one_of_several_is_down(tmp_path: Path, series: list[tuple[str, str]], fires: bool) -> None:
    assert firing(tmp_path, "GuardReplicaDown", series) == fires
    assert not firing(tmp_path, "GuardGone", series)


@pytest.mark.parametrize(
    ("series", "fires"),
    [
        ([(export(0, OLD), STAYS), (export(1, OLD), STAYS)], False),
        ([(export(0, OLD), STAYS), (export(1, NEW), STAYS)], True),
        ([(export(0, OLD), STAYS), (export(0, NEW, "other"), STAYS)], False),
        ([(export(0, OLD), GOES), (export(0, NEW), COMES), (export(1, NEW), STAYS)], False),
    ],
    ids=["one export", "two exports", "two fleets", "a rollout that ends"],
)
def test_different_exports(tmp_path: Path, series: list[tuple[str, str]], fires: bool) -> None:
    assert firing(tmp_path, "GuardExportsDiffer", series) == fires
    assert not firing(tmp_path, "GuardExportsDiffer", series, minutes=30)


@pytest.mark.parametrize(
    ("series", "fires"),
    [
        ([device(0, *CPU), device(1, *CPU)], False),
        ([device(0, *GPU), device(1, *GPU)], False),
        ([device(0, *GPU), device(1, *FELL_BACK)], True),
        ([device(0, *FELL_BACK), device(1, *FELL_BACK)], True),
        ([device(0, *GPU), device(1, *CPU)], True),
        ([device(0, *GPU), device(0, *CPU, "other")], False),
    ],
    ids=["on CPUs", "on GPUs", "one fell back", "all fell back", "two kinds", "two fleets"],
)
def test_another_device(tmp_path: Path, series: list[str], fires: bool) -> None:
    assert firing(tmp_path, "GuardOnAnotherDevice", [(name, STAYS) for name in series]) == fires


def kv(job: str, used: int) -> list[tuple[str, str]]:
    labels = f'{{job="{job}",instance="0"}}'
    return [(f"qwen3guard_kv_used_bytes{labels}", f"{used}x90"), (f"qwen3guard_kv_budget_bytes{labels}", "100x90")]


def steps(job: str, within_half_a_second: int, of: int) -> list[tuple[str, str]]:
    counts = {"0.25": within_half_a_second, "0.5": within_half_a_second, "1": of, "+Inf": of}
    name = f'qwen3guard_step_seconds_bucket{{job="{job}",instance="0",kind="step",le="'
    return [(f'{name}{bound}"}}', f"0+{count}x90") for bound, count in counts.items()]


@pytest.mark.parametrize(
    ("alert", "series", "fires"),
    [
        ("GuardKvNearlyFull", kv("one", 95) + kv("other", 10), True),
        ("GuardKvNearlyFull", kv("one", 85) + kv("other", 85), False),
        ("GuardStepsSlow", steps("one", 50, of=60) + steps("other", 6000, of=6000), True),
        ("GuardStepsSlow", steps("one", 60, of=60) + steps("other", 6000, of=6000), False),
    ],
)
def test_another_fleet_hides_nothing(tmp_path: Path, alert: str, series: list[tuple[str, str]], fires: bool) -> None:
    assert firing(tmp_path, alert, series) == fires


@pytest.mark.parametrize(("values", "fires"), [("0x90", False), ("0x65 1x25", True), ("0x20 1x70", False)])
def test_answers_that_nobody_judged(tmp_path: Path, values: str, fires: bool) -> None:
    """Within a quarter of an hour."""
    series = 'qwen3guard_proxy_unguarded_total{job="proxy",instance="0",route="/v1/chat/completions"}'
    assert firing(tmp_path, "GuardBypassed", [(series, values)]) == fires


@pytest.mark.parametrize(
    ("code", "values", "fires"),
    [
        ("guard_unreachable", "0+1x90", True),
        ("guard_unreachable", "0x60 1x30", False),
        ("guard_text_too_long", "0+1x90", False),
        ("upstream_failed", "0+1x90", False),
    ],
)
def test_errors_of_the_guard_to_the_proxys_callers(tmp_path: Path, code: str, values: str, fires: bool) -> None:
    series = f'qwen3guard_proxy_errors_total{{job="proxy",instance="0",route="/v1/messages",code="{code}"}}'
    assert firing(tmp_path, "GuardFailsProxy", [(series, values)]) == fires
