"""What nobody reads, and what no disk takes: the guard answers all the same, and is started again when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from qwen3guard_client import GuardClient
from qwen3guard_contract import errors
from qwen3guard_contract.log_output import LOG_VARIABLE
from qwen3guard_server import server as embedded
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.server_log import ServerLog
from qwen3guard_server.settings import ServerSettings
from support.command import COMMAND
from support.processes import children, traces
from support.serving import free_port, serve, stream_repository, wait_ready

PATIENCE_S = 90.0


@contextlib.contextmanager
def unread(*, gone: bool) -> Iterator[int]:
    """The end to write of a pipe that is full, or that nobody has the other end of."""
    reader, writer = os.pipe()
    if gone:
        os.close(reader)
    else:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(writer, bytes(4096)):
                pass
        os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(writer)
        if not gone:
            os.close(reader)


def judges(guard: GuardClient) -> None:
    """Waits until the guard judges again."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with guard.stream("How do I bake bread?") as stream:
                stream.step("Mix flour.")
        except (errors.Unreachable, errors.GuardNotServed, errors.DeadlineExceeded):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return


@pytest.mark.parametrize("reader", ["stalled", "gone", "a file, removed with its folder"])
def test_a_guard_is_kept_running_though_nobody_reads_what_serve_writes(
    repository: Path, tmp_path: Path, reader: str
) -> None:
    port = free_port()
    models = stream_repository(repository, tmp_path / "r")
    command: list[str | Path] = [COMMAND, "serve", "--model-repository", models, "--grpc-port", str(port)]
    command += ["--log-format", "json"]
    folder = tmp_path / "logs"
    folder.mkdir()
    if reader.startswith("a file"):
        command += ["--log-file", folder / "log"]
    with (
        unread(gone=reader == "gone") as out,
        unread(gone=reader == "gone") as log,
        subprocess.Popen(command, stdout=out, stderr=log) as process,
        GuardClient(f"127.0.0.1:{port}", timeout_s=PATIENCE_S) as guard,
    ):
        judges(guard)
        shutil.rmtree(folder)
        for number in range(20):
            with pytest.raises(errors.EmptyText):
                guard.stream_step(f"wrong {number}", prompt="", start=True)
        killed = next(pid for pid in children(process.pid) if "stub" in Path(f"/proc/{pid}/cmdline").read_text())
        os.kill(killed, signal.SIGKILL)
        judges(guard)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    assert not traces(process.pid)


def test_the_log_goes_into_a_file_if_asked(repository: Path, tmp_path: Path) -> None:
    port = free_port()
    models = stream_repository(repository, tmp_path / "r")
    file = tmp_path / "log"
    command: list[str | Path] = [COMMAND, "serve", "--model-repository", models, "--grpc-port", str(port)]
    command += ["--log-file", file, "--log-format", "json"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        GuardClient(f"127.0.0.1:{port}", timeout_s=PATIENCE_S) as guard,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready on 127.0.0.1:{port}\n"
        with pytest.raises(errors.EmptyText):
            guard.stream_step("wrong", prompt="", start=True)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=PATIENCE_S) == ("", "")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {"supervisor", "ready", "request_failed"} == {line["event"] for line in lines}
    assert [line["code"] for line in lines if line["event"] == "request_failed"] == ["EMPTY_TEXT"]  # and no canary


def test_an_error_ends_serve_though_nobody_reads_it_and_its_log_has_the_reason(
    repository: Path, tmp_path: Path
) -> None:
    models = stream_repository(repository, tmp_path / "r")
    (models / "stream_guard" / "1" / "model.onnx").unlink()
    command: list[str | Path] = [COMMAND, "serve", "--model-repository", models, "--grpc-port", str(free_port())]
    for options in (["--log-file", tmp_path / "log"], ["--debug"]):
        with unread(gone=False) as out, subprocess.Popen([*command, *options], stdout=out, stderr=out) as process:
            assert process.wait(PATIENCE_S) == 1
        assert not traces(process.pid)
    assert "model.onnx is missing" in (tmp_path / "log").read_text()


class FullDisk(ServerLog):
    """The models write to a device without space, as they would to a file in a container."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        os.close(self.descriptor)
        self.descriptor = os.open("/dev/full", os.O_WRONLY)


def test_a_full_disk_takes_no_answer_away(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOG_VARIABLE, "json")
    monkeypatch.setattr(embedded, "ServerLog", FullDisk)
    metrics = free_port()
    settings = ServerSettings(repository, grpc_port=free_port(), metrics_port=metrics, load_s=120)
    with EmbeddedServer(settings) as server, GuardClient(server.url, timeout_s=PATIENCE_S) as guard:
        wait_ready(server)
        with guard.stream("How do I bake bread?") as stream:
            for number in range(5):
                with pytest.raises(errors.EmptyText):
                    guard.classify("")
                with pytest.raises(errors.TokenOutOfRange):
                    guard.stream_step(f"wrong {number}", prompt="Hi.", token_ids=[10**9], start=True)
                stream.step("Mix flour. ")
        deadline = time.monotonic() + 30
        while (lost := dropped(metrics)) < 10 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert lost >= 10


def dropped(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("qwen3guard_log_dropped_total"))


def test_a_server_whose_folder_was_removed_is_started_again(repository: Path, tmp_path: Path) -> None:
    """As cleaners of old files do."""
    with serve(stream_repository(repository, tmp_path / "r")) as server, GuardClient(server.url) as guard:
        wait_ready(server)
        for folder in Path(tempfile.gettempdir()).glob(f"*qwen3guard_{os.getpid()}_*"):
            if server._prepared().tag in folder.name:
                shutil.rmtree(folder)
        judges(guard)
        server.restart()
        wait_ready(server)
        judges(guard)


def test_a_folder_that_cannot_be_made_is_named(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(errors.ServeError, match=r"cannot be prepared: .*nowhere.*No such file"), serve(repository):
        pass
