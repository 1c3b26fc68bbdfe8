"""What the image runs, with the wheel's Triton in the place of NVIDIA's: its command, and its probe."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from qwen3guard_client import GuardClient
from qwen3guard_contract import errors
from qwen3guard_contract.log_output import TRACE_VARIABLE
from qwen3guard_contract.parameters import TOKEN_VARIABLE
from qwen3guard_server import installation
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings
from support.places import ROOT
from support.processes import children
from support.serving import free_port

DEPLOY = ROOT / "deploy"
REGIONS = "*qwen3guard_container*"
TOKEN = "a-token-of-the-tests"
SERVING = b"\x08\x01"
"""HealthCheckResponse with the status SERVING."""


class Container:
    """deploy/serve.py on `models`, on a port of its own; what the image has in its place is put there."""

    def __init__(self, models: Path, folder: Path) -> None:
        triton = installation.wheel()
        backend = folder / "backends" / "python"
        shutil.copytree(triton / "backends" / "python", backend)
        shutil.copy(installation.stub(triton), backend)
        self.environment = installation.environment(triton, installation.libpython_folder())
        self.environment["PATH"] += f":{triton / 'bin'}"
        (folder / "tmp").mkdir()
        self.environment |= {"MODEL_REPOSITORY": str(models), TOKEN_VARIABLE: TOKEN, "TMPDIR": str(folder / "tmp")}
        self.environment |= {TRACE_VARIABLE: "all", "GRPC_VERBOSITY": "debug"}
        self._port = free_port()
        self.log = folder / "log"
        self._command = [sys.executable, str(DEPLOY / "serve.py"), f"--backend-directory={folder / 'backends'}"]
        self._command += ["--grpc-address=127.0.0.1", f"--grpc-port={self._port}", "--allow-metrics=false"]
        self._command += ["--exit-timeout-secs=1"]
        self.url = f"127.0.0.1:{self._port}"

    def __enter__(self) -> Container:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it may have ended when its models were killed
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def probe(self, timeout_s: float = 10.0) -> int:
        command = [sys.executable, str(DEPLOY / "canary.py"), "--url", self.url, "--timeout", str(timeout_s)]
        done = subprocess.run(command, env=self.environment, capture_output=True, check=False)
        assert TOKEN.encode() not in done.stderr
        return done.returncode

    def health(self) -> bytes:
        """What a kubelet's gRPC probe is told."""
        with grpc.insecure_channel(self.url) as channel:
            return bytes(channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10))

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 120
        while self.probe():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()


def regions() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(REGIONS)}


@pytest.fixture
def container(copy: Path, tmp_path: Path) -> Iterator[Container]:
    with Container(copy, tmp_path) as running:
        yield running
    for region in regions():
        (Path("/dev/shm") / region).unlink()


def test_the_probe_tells_apart_what_triton_does_not(container: Container, copy: Path) -> None:
    assert container.probe() == 1  # still loading
    container.wait_ready()
    assert container.health() == SERVING  # without the token
    with GuardClient(container.url) as stranger, pytest.raises(errors.TokenRefused):
        stranger.classify("How do I bake bread?")
    with GuardClient(container.url, token=TOKEN) as guard:
        assert guard.classify("How do I bake bread?").strict is False
        newer = copy / "gen_guard" / "1" / "manifest.json"
        (served,) = Path(container.environment["TMPDIR"]).rglob("gen_guard/1/manifest.json")
        right = newer.read_text()
        content = json.loads(right)
        content["canary"]["values"][0] += 1
        newer.write_text(json.dumps(content))
        assert container.probe() == 0  # else every replica that reads this repository would be restarted at once
        served.write_text(json.dumps(content))
        assert container.probe() == 3
        served.write_text(right)
        (tokenizer,) = (
            pid for pid in children(container.process.pid) if b"stream_tok" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(tokenizer, signal.SIGSTOP)
        assert container.probe(timeout_s=0.5) == 2
        os.kill(tokenizer, signal.SIGKILL)
        assert guard.is_ready("stream_step")
        assert container.probe() == 2
    container.process.terminate()
    container.process.wait(30)
    assert container.probe() == 1
    assert TOKEN not in container.log.read_text()


def test_a_killed_container_leaves_its_successor_no_shared_memory(container: Container) -> None:
    container.wait_ready()
    before = regions()
    container.kill()
    assert regions() == before != set()
    with container:
        container.wait_ready()
        assert not before & regions()
        assert len(regions()) == len(before)


def test_an_empty_repository_is_named(tmp_path: Path) -> None:
    environment = os.environ | {"MODEL_REPOSITORY": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, str(DEPLOY / "serve.py")], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("serve: ")
    assert "qwen3guard export" in ended.stderr


def test_triton_is_started_as_serve_starts_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DEPLOY))
    import serve  # type: ignore[import-not-found]  # deploy/serve.py

    def flags(command: list[str]) -> dict[str, str]:
        return dict(flag.partition("=")[::2] for flag in command if "backend-config" not in flag)

    server = EmbeddedServer(ServerSettings(repository))
    server._footprint = cast(Any, SimpleNamespace(folder=Path("/tmp/folder"), tag="tag"))
    ours = flags(serve.command(repository, server.manifests, token=None))
    embedded = flags(server._command(Path("/opt/tritonserver")))
    other = {flag for flag in embedded if ours.get(flag, "").partition("=")[0] != embedded[flag].partition("=")[0]}
    assert other == {
        "--backend-directory",
        "--grpc-address",  # theirs is loopback, ours every interface
        "--allow-metrics",
        "--allow-cpu-metrics",
        "--allow-gpu-metrics",
    }
