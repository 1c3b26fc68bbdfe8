"""`qwen3guard verify` on checkpoints that are known: it must recommend what is good and refuse what is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from four_bits import rounded
from outliers import derive, kinds
from qwen3guard_apps.verification import verification
from qwen3guard_apps.verification.formats import formats
from qwen3guard_apps.verification.recommendation import FIRM_CHANGED, MEAN_ERROR, MIN_AGREEMENT, TIE, UNREADABLE
from qwen3guard_apps.verification.results import Verified
from qwen3guard_apps.verification.texts import bundled, spread
from qwen3guard_apps.verification.timing import IN_PROCESS, SERVED, Timing
from qwen3guard_apps.verification.transformers_judge import TransformersJudge
from qwen3guard_apps.verification.verification import Plan, verify
from qwen3guard_contract.errors import ParityError, ServeError
from qwen3guard_contract.forms import Form
from qwen3guard_contract.manifest import Manifest
from qwen3guard_export import export
from qwen3guard_export.checkpoint.checkpoint import open_checkpoint
from qwen3guard_runtime.text.tokenizer import IM_START, GuardTokenizer
from support.command import COMMAND
from support.pages import DOCS, blocks
from support.places import DEMO
from support.random_checkpoint import make

VARIANTS = ("gen", "stream")


def quiet(_: str) -> None:
    pass


@pytest.fixture
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """dq8r counts as the faster one, whatever else this machine does."""

    def none(_: Path, manifest: Manifest, *__: object) -> Timing:
        return Timing({"fp32": 9.0, "dq8r": 5.0}.get(manifest.weights, 7.0), 1, 1, SERVED)

    monkeypatch.setattr(verification, "served", none)


def verified(checkpoint: Path, names: str = "fp32,dq8r", texts: int = 60, peer: int = 0) -> Verified:
    return verify(
        Plan(str(checkpoint), None, formats(names), spread(bundled(), texts), peer, MIN_AGREEMENT),
        quiet,
    )


def found(result: Verified, name: str) -> dict[str, Any]:
    return dict(result.as_dict()["formats"][name])


@pytest.mark.usefixtures("_no_server")
@pytest.mark.parametrize(("variant", "mean", "largest"), [("gen", 0.003, 0.03), ("stream", 0.003, 0.1)])
def test_eight_bits_of_the_demo_are_near_fp32_and_fp32_is_transformers(
    variant: str, mean: float, largest: float
) -> None:
    """The bounds that a guard is held to. test_other_cpus.py shows that another CPU gives the same bits."""
    result = verified(DEMO / variant, texts=80, peer=8)
    assert result.recommended == "dq8r"
    assert result.failures == []
    eight = found(result, "dq8r")
    assert 0 < eight["with_fp32"]["probability"]["mean"] <= mean
    assert eight["with_fp32"]["probability"]["largest"] <= largest
    assert eight["with_fp32"]["firm_changed"]["part"] == 0
    assert eight["with_fp32"]["firm_changed"]["of"] > 50
    exact = found(result, "fp32")["with_transformers"]
    assert exact["level"]["value"] == exact["flags"]["strict"]["value"] == 1
    assert exact["probability"]["largest"] < 1e-4
    assert result.transformers == {"texts": 8, "same_tokens": 8, "why": ""}
    if variant == "gen":
        assert exact["answer"] == {"value": 1.0, "part": 8, "of": 8, "interval": exact["answer"]["interval"]}
    assert eight["bytes"] < 0.7 * found(result, "fp32")["bytes"]


@pytest.mark.usefixtures("_no_server")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_random_checkpoint_in_eight_bits_is_good(variant: str, tmp_path: Path) -> None:
    """Gen's answers are no verdicts then; its levels after "Safety:" are compared all the same."""
    vocab = json.loads((DEMO / variant / "config.json").read_text())["vocab_size"]
    tokenizer = {"tokenizer_from": DEMO / variant, "vocab": vocab}
    checkpoint = make(tmp_path / "random", variant, context=512, **tokenizer)
    result = verified(checkpoint, texts=15, peer=4)
    assert result.recommended == "dq8r", result.faults(result.outcomes[1])
    assert result.left_out > 0  # the long ones
    exact = found(result, "fp32")
    assert exact["with_transformers"]["probability"]["largest"] < 1e-4
    if variant == "gen":
        assert exact["with_fp32"]["unreadable"]["found"] == len(result.texts)


@pytest.mark.usefixtures("_no_server")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_format_that_is_broken_is_refused(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dq8r of other weights: those of the checkpoint in 2 levels. Its own proof has nothing to say against it."""
    copy = rounded(DEMO / variant, tmp_path / "copy", 2)

    def broken(checkpoint: str, output: Path, *, weights: str, **options: Any) -> Manifest:
        return export(str(copy) if weights == "dq8r" else checkpoint, output, weights=weights, **options)

    monkeypatch.setattr(verification, "export", broken)
    result = verified(DEMO / variant)
    assert result.recommended == "fp32"
    [fault] = result.failures
    assert fault.startswith("dq8r is below 0.98")
    assert any("firm labels changed" in each for each in result.faults(result.outcomes[1]))
    assert found(result, "dq8r")["with_fp32"]["changed"][0]["margin"] > 0.2


@pytest.mark.usefixtures("_no_server")
@pytest.mark.parametrize("variant", VARIANTS)
def test_outliers_are_good_as_they_are_exported_and_bad_without_the_balance(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_checkpoint(str(DEMO / variant))
    changes = kinds(GuardTokenizer.load(DEMO / variant).special[IM_START])
    chosen = ("k pair x 60", "three k pairs x 30", "v x 20", "down x 100", "norms x 30")
    folder = tmp_path / "outliers"
    derive(opened, folder, [change for name in chosen for change in changes[name]])
    for path in (DEMO / variant).glob("*.jinja"):
        shutil.copyfile(path, folder / path.name)
    good = verified(folder)
    assert good.recommended == "dq8r", good.faults(good.outcomes[1])
    before, after = (good.activations[state]["values"] for state in ("original", "balanced"))
    assert before.largest > 4 * after.largest
    monkeypatch.setattr(sys.modules["qwen3guard_export.export"], "balance", lambda checkpoint, *_, **__: checkpoint)
    bad = verified(folder)
    assert bad.recommended == "fp32"
    assert bad.faults(bad.outcomes[1])
    probability = found(bad, "dq8r")["with_fp32"]["probability"]
    assert probability["mean"] > 2 * found(good, "dq8r")["with_fp32"]["probability"]["mean"]


@pytest.mark.usefixtures("_no_server")
def test_a_format_that_its_proof_refuses_is_told_and_the_others_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["qwen3guard_export.export"]
    prove = module.prove

    def refuse(staging: Path, checkpoint: Any, form: Form, *arguments: Any, **options: Any) -> Any:
        if form.has_integer_weights:
            raise ParityError("The graph computes another MLP in layer 3.")
        return prove(staging, checkpoint, form, *arguments, **options)

    monkeypatch.setattr(module, "prove", refuse)
    result = verified(DEMO / "stream", "dq8r,fp32:int8", texts=5)
    assert result.failures == ["dq8r was not judged, since The graph computes another MLP in layer 3"]
    assert [each.name for each in result.outcomes] == ["fp32", "dq8r", "fp32:int8"]
    assert result.outcomes[2].comparison


@pytest.mark.usefixtures("_no_server")
def test_nothing_is_recommended_where_fp32_is_not_what_transformers_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = rounded(DEMO / "stream", tmp_path / "other", 2)
    monkeypatch.setattr(verification, "TransformersJudge", lambda _, variant: TransformersJudge(other, variant))
    result = verified(DEMO / "stream", texts=40, peer=40)
    assert result.recommended is None
    assert result.faults(result.reference)
    assert all(each.startswith("beside transformers") for each in result.faults(result.reference))


def test_without_a_server_the_times_are_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> Timing:
        raise ServeError("There is no server here.")

    monkeypatch.setattr(verification, "served", none)
    for variant in VARIANTS:
        timing = found(verified(DEMO / variant, "fp32", texts=3), "fp32")["time"]
        assert timing["where"] == IN_PROCESS
        assert timing["why"] == "There is no server here"
        assert 0 < timing["p50_ms"] < 5000


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_command_writes_its_report_and_leaves_nothing(variant: str, tmp_path: Path) -> None:
    scratch, output = tmp_path / "scratch", tmp_path / "output"
    scratch.mkdir()
    rows = [{"prompt": "How do I bake bread?"}, {"messages": [{"role": "user", "content": "Hi."}]}, {"other": 1}]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    names = "fp32,dq8r,bf16"
    command = ["verify", DEMO / variant, "--formats", names, "--data", tmp_path / "rows.jsonl", "--texts", "6"]
    done = subprocess.run(
        [COMMAND, *map(str, [*command, "--transformers", "2", "--output", output])],
        env=os.environ | {"TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1  # bf16 cannot run here
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"qwen3guard: {DEMO / variant} is not verified: bf16 was not judged, since it needs a GPU")
    assert "1 of 3 rows hold no conversation" in done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads((output / "report.json").read_text())
    assert report["texts"] == {"judged": 8, "left_out": 0}
    assert set(report["formats"]) == {"fp32", "dq8r", "bf16"}
    for name in ("fp32", "dq8r"):
        assert report["formats"][name]["time"]["where"] == SERVED
    text = (output / "report.md").read_text()
    assert "bf16 was not judged" in text
    assert done.stdout.splitlines()[0] == text.splitlines()[0] == f"# Verification of {DEMO / variant}"
    assert {path.name for path in output.iterdir()} == {"report.md", "report.json", "probabilities.png", "outliers.png"}
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [COMMAND, "verify", DEMO / "stream", "--transformers", "0"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    _wait_for(lambda line: "judging" in line, process)
    assert list(tmp_path.iterdir())
    time.sleep(0.3)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (output, list(tmp_path.iterdir())) == ("", [])
    assert "Traceback" not in errors


def _wait_for(wanted: Callable[[str], bool], process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if wanted(line):
            return
    raise AssertionError("It ended before.")


PAGE = DOCS / "verify.md"


@pytest.mark.parametrize("command", [line for block in blocks(PAGE, "bash") for line in block.splitlines()])
def test_the_commands_of_the_page_run_as_written(command: str) -> None:
    done = subprocess.run(
        ["bash", "-c", command], cwd=DEMO.parent, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "**Recommended: " in done.stdout


def test_the_bounds_are_those_of_the_documentation() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for bound in (f"{FIRM_CHANGED:.1%}", f"{MEAN_ERROR:g}", f"{MIN_AGREEMENT:g}", f"{UNREADABLE:.0%}"):
        assert bound in page
    assert f"within {100 * TIE:.0f} %" in page
    assert f"{len(bundled())} short texts" in page
