"""What Linux shows of a process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from qwen3guard_server.footprint import Footprint, clear_leftovers
from qwen3guard_server.processes import listens, stopping_on_signals, work

READS_40_MIB = "import time; zero = open('/dev/zero', 'rb'); [zero.read(1 << 20) for _ in range(40)]; time.sleep(600)"


@pytest.mark.parametrize(("program", "least"), [("while True: pass", 2.0), (READS_40_MIB, 4.0)])
def test_work_is_cpu_time_and_reading_and_ends_with_the_process(program: str, least: float) -> None:
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        while work(process.pid) < least:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert work(process.pid) == 0


def test_cpu_time_counts_where_reading_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text

    def denied(path: Path) -> str:
        if path.name == "io":
            raise PermissionError
        return read_text(path)

    shown = work(os.getpid())
    monkeypatch.setattr(Path, "read_text", denied)
    assert 0 < work(os.getpid()) < shown


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_who_listens_is_told_from_who_connects_and_from_others(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), family=family) as server,
        socket.create_connection(server.getsockname()[:2]) as client,
    ):
        port = server.getsockname()[1]
        assert listens(os.getpid(), port)
        assert not listens(os.getpid(), client.getsockname()[1])
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
            assert not listens(other.pid, port)
            other.kill()
    assert not listens(os.getpid(), port)


def test_a_folder_that_was_half_made_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    footprint = Footprint()
    try:
        footprint.make()
        shutil.rmtree(footprint.folder)
        (tmp_path / f".{footprint.tag}").mkdir()
        footprint.make()
        assert footprint.folder.is_dir()
    finally:
        footprint.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["mkdir", "touch", "rename"])
def test_a_signal_at_any_point_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, done: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    call = getattr(Path, name)

    def interrupted(*arguments: Any, **named: Any) -> None:
        if done:
            call(*arguments, **named)
        raise KeyboardInterrupt

    footprint = Footprint()
    monkeypatch.setattr(Path, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        footprint.make()
    monkeypatch.undo()
    footprint.remove()
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_maker_was_killed_before_it_had_its_name_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    new, old = (tmp_path / f".qwen3guard_{number}_{number:016x}" for number in (1, 2))
    for folder in (new, old):
        folder.mkdir()
    os.utime(old, (time.time() - 3600,) * 2)
    clear_leftovers()
    assert list(tmp_path.iterdir()) == [new]


@pytest.mark.parametrize("ignored", [False, True], ids=["a terminal that closes", "nohup"])
def test_whom_nohup_protects_goes_on(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt) if not ignored else nullcontext(), stopping_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_how_a_process_ended_is_known_where_the_parent_ignored_that() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with stopping_on_signals(), subprocess.Popen(["sleep", "60"]) as child:
            child.kill()
            assert child.wait() == -signal.SIGKILL
    finally:
        signal.signal(signal.SIGCHLD, before)
