"""The embedded server's life: what stops it from starting, what it leaves behind, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from qwen3guard_apps.doctor import export_checks
from qwen3guard_client import GuardClient
from qwen3guard_contract import errors
from qwen3guard_contract.layout import GEN
from qwen3guard_runtime.gen.models import GuardTokenizerModel
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings
from support.command import COMMAND, fails, run
from support.processes import children, traces
from support.serving import free_port, serve, wait_ready


@pytest.fixture
def served(repository: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`qwen3guard serve` as a person runs it."""
    port = free_port()
    command: list[str | Path] = [COMMAND, "serve", "--model-repository", repository, "--grpc-port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process, port
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_says_ready_answers_and_leaves_nothing(
    served: tuple[subprocess.Popen[str], int], number: signal.Signals
) -> None:
    process, port = served
    assert process.stdout is not None
    assert process.stdout.readline() == f"ready on 127.0.0.1:{port}\n"
    result = run("classify", "--url", f"127.0.0.1:{port}", "--prompt", "How do I bake bread?", "--json")
    assert json.loads(result.stdout)["severity"] == "Safe"
    family = children(process.pid)
    assert len(family) >= 5  # tritonserver and a stub for each Python model
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in said
    assert not any(Path(f"/proc/{child}").exists() for child in family)
    assert not traces(process.pid)


def leaves_nothing(pid: int) -> bool:
    """Whether nothing of the servers of process `pid` is left after a while."""
    deadline = time.monotonic() + 40
    while traces(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not traces(pid)


def kill(pid: int, *others: int) -> None:
    for each in (*others, pid):
        os.kill(each, signal.SIGKILL)


@pytest.mark.parametrize("processes", [0, 1, 2, 4], ids=lambda number: f"when {number} models have a process")
def test_a_supervisor_that_is_killed_while_it_loads_leaves_nothing(
    served: tuple[subprocess.Popen[str], int], processes: int
) -> None:
    process, _ = served
    deadline = time.monotonic() + 60
    while len(below(process.pid, "_stub\0")) < processes and time.monotonic() < deadline:
        time.sleep(0.001)
    kill(process.pid)
    process.wait()
    assert leaves_nothing(process.pid)


def below(pid: int, word: str) -> list[int]:
    """The processes below process `pid` with `word` in their command line."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
    return found


def test_a_supervisor_that_is_killed_leaves_nothing_and_its_port_is_free(
    served: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = served
    assert process.stdout is not None
    process.stdout.readline()
    assert len(traces(process.pid)) > 8  # regions of shared memory, a folder, processes
    kill(process.pid)
    process.wait()
    assert leaves_nothing(process.pid)
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_what_clears_up_after_a_supervisor_is_started_again(served: tuple[subprocess.Popen[str], int]) -> None:
    process, _ = served
    assert process.stdout is not None
    process.stdout.readline()
    before = below(process.pid, "footprint")
    assert len(before) == 1
    kill(*before)
    deadline = time.monotonic() + 30
    while (now := below(process.pid, "footprint")) in ([], before):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(now) == 1
    kill(process.pid)
    process.wait()
    assert leaves_nothing(process.pid)


def test_the_next_server_clears_what_a_killed_one_left(
    served: tuple[subprocess.Popen[str], int], repository: Path
) -> None:
    """Where what clears up after a killed supervisor is killed too. What a living one has stays."""
    process, port = served
    assert process.stdout is not None
    process.stdout.readline()
    (clearer,) = below(process.pid, "footprint")
    with serve(repository) as living:
        wait_ready(living)
        kill(process.pid, clearer)
        process.wait()
        left = traces(process.pid)
        assert len(left) > 8
        settings = ServerSettings(repository, grpc_port=port, load_s=120)
        with EmbeddedServer(settings) as following:  # its port is free at once
            assert leaves_nothing(process.pid)
            wait_ready(following)
        assert living.fault() is None
        with GuardClient(living.url) as guard:
            assert guard.classify("How do I bake bread?").severity.value == "Safe"


def test_what_only_looks_like_a_server_stays(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders with nearly such names, and a process that has such a name in its arguments, as this server's own."""
    tag = f"qwen3guard_1_{'0123456789abcdef'}"
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        for name in ("qwen3guard_my_notes", "qwen3guard_12_ff", tag):
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "note").touch()
        models = shutil.copytree(repository, Path(folder) / "qwen3guard_my_notes" / tag)
        with subprocess.Popen(["/bin/sh", "-c", "sleep 60", tag]) as bystander, serve(models) as server:
            wait_ready(server)
            assert bystander.poll() is None
            bystander.kill()
        assert sorted(path.name for path in Path(folder).rglob("note")) == ["note"] * 3


def test_a_busy_port_is_named(repository: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        fails(run("serve", "--model-repository", repository, "--grpc-port", port), str(port))


def test_two_services_on_one_port_are_named(repository: Path) -> None:
    ports = [word for name in ("http-port", "metrics-port") for word in (f"--{name}", "18999")]
    fails(run("serve", "--model-repository", repository, *ports), "--metrics-port and --http-port are both 18999")


def test_a_missing_export_is_named(tmp_path: Path) -> None:
    fails(run("serve", "--model-repository", tmp_path), "qwen3guard export", str(tmp_path))


def test_another_address_needs_an_override(repository: Path) -> None:
    fails(run("serve", "--model-repository", repository, "--address", "0.0.0.0"), "--allow-remote")


def test_a_template_that_is_not_the_guards_is_refused(repository: Path, tmp_path: Path) -> None:
    """Beside it, in place of it, or of another export: another conversation would be judged, without an error."""
    for name in ("gen_guard", "guard_tokenizer"):
        shutil.copytree(repository / name, tmp_path / name)
    served = GEN.tokenizer_folder(tmp_path)
    stray = served / "chat_template.jinja"
    stray.write_text("{{ messages[0].content }}")
    with pytest.raises(errors.TokenizerMismatch, match=r"chat_template\.jinja is not of the export"):
        GuardTokenizerModel(served)
    assert any(found.state == "failed" and "jinja" in found.said for found in export_checks.tokenizer(GEN, tmp_path))
    stray.unlink()
    GuardTokenizerModel(served)
    config = served / "tokenizer_config.json"
    whole = config.read_text()
    config.write_text(whole.replace("USER", "YOU"))
    with pytest.raises(errors.TokenizerMismatch, match=r"tokenizer_config\.json is not the file"):
        GuardTokenizerModel(served)
    manifest = json.loads((served / "manifest.json").read_text())
    manifest["sha256"]["tokenizer_config.json"] = sha256(config.read_bytes()).hexdigest()
    (served / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(errors.TokenizerMismatch, match="of two exports"):
        GuardTokenizerModel(served)


CUDA = 'E0101 00:00:00.000000 1 x.cc:1] "CUDA driver version is insufficient for CUDA runtime version"'


LOUD = """
class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        try:
            super().initialize(args)
        except Exception:
            __import__("os").write(2, %r)
            raise
"""


@pytest.mark.parametrize("name", ["gen_guard", "guard_tokenizer", "stream_guard", "stream_tokenizer"])
def test_every_model_says_its_own_error_though_triton_writes_more(copy: Path, name: str) -> None:
    folder = copy / name / "1"
    with (folder / "model.py").open("a") as file:
        file.write(LOUD % f"{CUDA}\n".encode())
    (folder / "tokenizer.json").unlink()
    with serve(copy) as server:
        with pytest.raises(errors.ServeError) as found:
            wait_ready(server)
        assert CUDA in server.log
    assert str(folder) in str(found.value)
    assert "CUDA" not in str(found.value)
    assert "At:" not in str(found.value)


def test_a_stub_that_dies_while_loading_is_named(copy: Path) -> None:
    """Triton itself would wait for it until its time-out."""
    (copy / "gen_guard" / "1" / "model.py").unlink()
    with serve(copy) as server, pytest.raises(errors.ServeError, match=r"gen_guard/1/model\.py"):
        wait_ready(server)


def test_a_missing_graph_is_named(copy: Path) -> None:
    """tests/unit/test_loading.py has the other sentences of a guard that cannot be loaded."""
    (copy / "stream_guard" / "1" / "model.onnx").unlink()
    with serve(copy) as server, pytest.raises(errors.ServeError, match=r"model\.onnx is missing"):
        wait_ready(server)


def test_a_canary_with_other_values_is_not_ready(copy: Path) -> None:
    folder = copy / "gen_guard" / "1"
    data = json.loads((folder / "manifest.json").read_text())
    data["canary"]["values"][0] += 0.5
    (folder / "manifest.json").write_text(json.dumps(data))
    with serve(copy) as server, pytest.raises(errors.CanaryFailed):
        wait_ready(server)


def test_one_guard_alone_can_be_served(stream_server: EmbeddedServer) -> None:
    with GuardClient(stream_server.url) as client:
        assert client.stream_step("one", prompt="Hi.", start=True, end=True).prompt_verdict
        with pytest.raises(errors.GuardNotServed):
            client.classify("Hi.")


def test_a_repository_with_a_space_and_no_folder_with_one(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton starts models by a shell command, and does not quote the paths in it."""
    models = Path(shutil.copytree(repository, tmp_path / "two words; $HOME"))
    with serve(models) as server, GuardClient(server.url) as guard:
        wait_ready(server)
        assert guard.classify("How do I bake bread?")
    monkeypatch.setattr(tempfile, "tempdir", str(models))
    with pytest.raises(errors.ServeError, match="let TMPDIR name a folder without spaces"), serve(repository):
        pass
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(errors.ServeError, match="bash, which is nowhere on PATH"), serve(repository):
        pass
