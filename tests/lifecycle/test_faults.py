"""Faults of trials/faults.py in short: injected into live processes, and no wrong verdict comes of it.

Killed servers and hung processes: test_recovery.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
from qwen3guard_client import GuardClient
from qwen3guard_contract.errors import CorruptFile, GuardError, InternalError, ServeError
from qwen3guard_contract.manifest import Manifest
from qwen3guard_runtime.engine.integrity import ExportedFiles
from support.serving import serve, wait_ready

Fault = Callable[[faults.Target, int], dict[str, Any]]


@pytest.fixture(scope="module")
def target(repository: Path) -> Iterator[faults.Target]:
    """A server under its supervisor, which outlives what is done to it."""
    with faults.Target(repository) as running:
        yield running


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        (faults.model_killed, 4),
        (faults.client_gone, 3),
        (faults.cancelled, 5),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_only_right_verdicts_and_errors(target: faults.Target, fault: Fault, times: int) -> None:
    random.seed(7)
    found = fault(target, times)
    assert found["injected"] == times
    assert found["right"] > 0
    assert found["wrong"] == 0


def test_a_guard_that_the_kernel_kills_for_its_memory_comes_back(target: faults.Target) -> None:
    found = faults.out_of_memory(target, 2)
    if "not run" in found and "CI" not in os.environ:
        pytest.skip(found["not run"])
    assert found["long requests meanwhile"]["killed"] == 2
    assert (found["right"] > 0, found["wrong"]) == (True, 0)


def test_streams_outlive_a_server_that_is_told_to_stop(repository: Path) -> None:
    found = faults.drained(repository, 1)
    assert (found["right"], found["wrong"], found["errors"]) == (4, 0, {})


def test_an_export_onto_a_full_disk_leaves_the_former_one(repository: Path) -> None:
    random.seed(7)
    found = faults.disk_full(repository, 2)
    assert (found["right"], found["wrong"], found["errors"]) == (2, 0, {})


def test_nobody_reloads_a_model(target: faults.Target) -> None:
    assert faults.reload_refused(target, 1)["refused"] == 2


@pytest.mark.parametrize("change", [faults.truncate, faults.overwrite, faults.replace])
def test_changed_weights_are_not_loaded(repository: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    random.seed(7)
    folder = Path(shutil.copytree(repository / "stream_guard" / "1", tmp_path / "1"))
    manifest = Manifest.read(folder)
    ExportedFiles(folder, manifest).check()
    change(folder / "model.onnx.data")
    with pytest.raises(CorruptFile, match=r"model\.onnx\.data is not the file that was exported"):
        ExportedFiles(folder, manifest)


def test_a_write_after_which_the_time_is_set_back_is_noticed(repository: Path, tmp_path: Path) -> None:
    """As `cp --preserve`, `rsync --inplace --times` and `tar --overwrite` do; another name or mode is none."""
    folder = Path(shutil.copytree(repository / "stream_guard" / "1", tmp_path / "1"))
    files, data = ExportedFiles(folder, Manifest.read(folder)), folder / "model.onnx.data"
    before = data.stat()
    data.chmod(0o400)
    (tmp_path / "linked").hardlink_to(data)
    data.rename(tmp_path / "renamed")
    files.check()
    with (tmp_path / "linked").open("r+b") as file:
        file.seek(before.st_size // 2)
        file.write(b"x" * 1000)
    os.utime(tmp_path / "linked", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InternalError, match="overwritten"):
        files.check()


def test_changed_weights_are_not_served(repository: Path, tmp_path: Path) -> None:
    random.seed(7)
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    faults.replace(models / "gen_guard" / "1" / "model.onnx.data")
    with serve(models) as server, pytest.raises(ServeError, match="not the file that was exported"):
        wait_ready(server)


def test_weights_replaced_under_a_server_change_nothing_that_it_says(repository: Path, tmp_path: Path) -> None:
    random.seed(7)
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    with serve(models) as server, GuardClient(server.url) as guard:
        wait_ready(server)
        before = guard.classify(faults.PROMPT)
        faults.replace(models / "gen_guard" / "1" / "model.onnx.data")
        assert faults.same(guard.classify(faults.PROMPT), before)


def test_weights_overwritten_under_a_server_are_found_before_an_answer_is_sent(
    repository: Path, tmp_path: Path
) -> None:
    random.seed(7)
    models = Path(shutil.copytree(repository, tmp_path / "models"))
    with serve(models) as server, GuardClient(server.url) as guard:
        wait_ready(server)
        stream = guard.stream(faults.PROMPT).__enter__()
        for name in ("gen_guard", "stream_guard"):
            faults.overwrite(models / name / "1" / "model.onnx.data")
        for ask in (lambda: guard.classify(faults.PROMPT), lambda: stream.step("Mix flour."), stream.finish):
            with pytest.raises(InternalError, match="overwritten"):
                ask()


def test_a_caller_hears_of_a_fault_unless_it_says_otherwise(repository: Path) -> None:
    """Fail-closed: nothing of a response is shown that was not checked, and the loop raises."""
    with serve(repository) as server, GuardClient(server.url, timeout_s=2, wait_for_server=False) as guard:
        wait_ready(server)

        def llm() -> Any:
            yield "Mix flour."
            server.stop(kill=True)
            yield " And water." * 5

        shown: list[str] = []
        moderated = guard.moderate(llm(), prompt=faults.PROMPT)
        with pytest.raises(GuardError):
            shown.extend(str(segment) for segment in moderated)
        assert "And water" not in "".join(shown)
