"""The same bits on every kind of x86 CPU. qemu-user stands in for one with AVX2 alone, whatever this machine has.

The kernels of VNNI and AMX cannot be had that way: on a machine that has them, the native side of each test is theirs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from qwen3guard_contract.manifest import Manifest
from qwen3guard_export import export
from support.places import DEMO, ROOT

SCRIPTS = ROOT / "tests" / "support" / "other_cpus"
VARIANTS = ("gen", "stream")


def emulator() -> str:
    found = shutil.which("qemu-x86_64")
    if found:
        return found
    if os.environ.get("CI"):
        pytest.fail("There is no qemu-x86_64: apt-get install qemu-user.")
    pytest.skip("There is no qemu-x86_64 here; with it (apt-get install qemu-user) another CPU is tried too.")


def run(script: str, *arguments: object, cpu: str | None = None) -> str:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    prefix = [emulator(), "-cpu", cpu] if cpu else []
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both demo guards in dq8r, Stream's keys and values in int8, exported on this machine's CPU."""
    folder = tmp_path_factory.mktemp("repository")
    for variant in VARIANTS:
        export(str(DEMO / variant), folder, weights="dq8r", say=lambda _: None)
    return folder


Logits = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def logits(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Logits:
    folder = tmp_path_factory.mktemp("logits")
    found: dict[tuple[str | None, ...], dict[str, np.ndarray]] = {}

    def read(cpu: str | None = None, *options: str) -> dict[str, np.ndarray]:
        key = (cpu, *options)
        if key not in found:
            path = folder / f"{len(found)}.npz"
            run("logits.py", repository, path, *options, cpu=cpu)
            found[key] = dict(np.load(path))
        return found[key]

    return read


def test_a_dq8r_guard_has_the_same_bits_where_products_saturate(logits: Logits) -> None:
    here, there = logits(), logits("Haswell")
    assert there.pop("products") == "repaired"
    for name, values in there.items():
        np.testing.assert_array_equal(values, here[name], err_msg=name)


def test_without_the_repair_the_products_would_be_wrong(logits: Logits, repository: Path) -> None:
    """So that the test above can fail; and the canaries would have told."""
    here, there = logits(), logits("Haswell", "--unrepaired")
    for variant in VARIANTS:
        name = f"{variant}_guard 0 0"
        off = np.abs(here[name] - there[name]).max() / np.abs(here[name]).max()
        assert off > 0.02
    canary = Manifest.read(repository / "stream_guard" / "1").canary
    for logits_of, agrees in ((here, True), (there, False)):
        values = [softmax(logits_of[f"stream_guard 4 {output}"]).ravel() for output in (0, 1)]
        assert canary.agrees(np.concatenate(values).tolist()) == agrees


def softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values.astype(np.float64) - values.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_exports_are_proved_there_and_those_with_wrong_products_are_refused(tmp_path: Path) -> None:
    said = run("prove.py", tmp_path, *(DEMO / variant for variant in VARIANTS), cpu="Haswell").splitlines()
    assert said[::2] == ["gen repaired: proved", "stream repaired: proved"]
    assert all("as it is: refused, the graph computes another " in each for each in said[1::2])
