"""The embedded server's life: what stops it from starting, what it leaves behind, and how it ends."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import free_port, serve, wait_ready
from qwen3guard_apps.doctor import export_checks
from qwen3guard_client import GuardClient
from qwen3guard_contract import errors
from qwen3guard_contract.layout import GEN
from qwen3guard_contract.manifest import Manifest
from qwen3guard_runtime.gen.models import GuardTokenizerModel
from qwen3guard_server import canary, installation
from qwen3guard_server.server import reason

COMMAND = Path(sys.executable).parent / "qwen3guard"


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    """A repository to break."""
    return Path(shutil.copytree(repository, tmp_path / "repository"))


@pytest.fixture
def served(repository: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`qwen3guard serve` as a person runs it."""
    port = free_port()
    command = [COMMAND, "serve", "--model-repository", repository, "--grpc-port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process, port
        process.kill()


def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([COMMAND, *map(str, arguments)], input=stdin, capture_output=True, check=False, timeout=120)


def fails(result: subprocess.CompletedProcess[bytes], *words: str) -> None:
    assert result.returncode == 1
    assert result.stdout == b""
    sentence = result.stderr.decode().strip().splitlines()[-1]
    assert sentence.startswith("qwen3guard: ")
    assert "Traceback" not in result.stderr.decode()
    for word in words:
        assert word in sentence


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [each for child in map(int, found.split()) for each in (child, *children(child))]


def traces(pid: int) -> list[str]:
    """Shared memory that a server started by process `pid` left behind."""
    return [path.name for path in Path("/dev/shm").glob(f"*qwen3guard_{pid}_*")]


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


def test_a_killed_supervisor_takes_its_server_along(served: tuple[subprocess.Popen[str], int]) -> None:
    process, _ = served
    assert process.stdout is not None
    process.stdout.readline()
    family = children(process.pid)
    process.kill()
    deadline = time.monotonic() + 40
    while any(Path(f"/proc/{child}").exists() for child in family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{child}").exists() for child in family)


def test_a_busy_port_is_named(repository: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        fails(run("serve", "--model-repository", repository, "--grpc-port", port), str(port))


def test_a_missing_export_is_named(tmp_path: Path) -> None:
    fails(run("serve", "--model-repository", tmp_path), "qwen3guard export", str(tmp_path))


def test_another_address_needs_an_override(repository: Path) -> None:
    fails(run("serve", "--model-repository", repository, "--address", "0.0.0.0"), "--allow-remote")


def test_a_missing_graph_a_truncated_one_and_a_foreign_tokenizer_are_named(copy: Path) -> None:
    graph = copy / "stream_guard" / "1" / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])
    with serve(copy) as server, pytest.raises(errors.ServeError, match=r"model\.onnx"):
        wait_ready(server)
    graph.unlink()
    with serve(copy) as server, pytest.raises(errors.ServeError, match=r"model\.onnx is missing"):
        wait_ready(server)
    graph.write_bytes(whole)
    tokenizer = copy / "guard_tokenizer" / "1" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with serve(copy) as server, pytest.raises(errors.ServeError, match="tokenizer"):
        wait_ready(server)


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
TRITON = "error: creating server: Internal - failed to load all models"
GRPC = "E0000 00:00:1764180000.123456 99 ev_epoll1_linux.cc:1] (event_engine) Epoll1Poller: Bad file descriptor"
OURS = "[CORRUPT_FILE] /models/gen_guard/1/model.onnx is missing."


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([CUDA, OURS, TRITON], "/models/gen_guard/1/model.onnx is missing."),
        ([OURS, CUDA], "/models/gen_guard/1/model.onnx is missing."),
        ([f"I0101 00:00:00 1 y.cc:2] {OURS}", TRITON, CUDA], "/models/gen_guard/1/model.onnx is missing."),
        ([OURS, "[DEVICE] The GPU cannot be used: it is busy.", CUDA], "/models/gen_guard/1/model.onnx is missing."),
        (["[DEVICE] The GPU cannot be used: 'it' is busy [9].", CUDA], "The GPU cannot be used: 'it' is busy [9]."),
        (["I0101 [libprotobuf ERROR x.cc:1] [NO_SUCH_CODE] text", CUDA], "CUDA driver version is insufficient"),
        ([TRITON, CUDA], "CUDA driver version is insufficient"),
        ([CUDA, TRITON], "failed to load all models"),
        ([TRITON, GRPC], "failed to load all models"),
        (['I0101 00:00:00.000000 1 x.cc:1] "loading: gen_guard:1"'], "its log says nothing"),
        ([], "its log says nothing"),
    ],
)
def test_the_guards_own_error_is_the_reason_whatever_triton_writes(lines: list[str], expected: str) -> None:
    assert expected in reason("".join(f"{line}\n" for line in lines))


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


@pytest.mark.parametrize("guard_name", ["gen_guard", "stream_guard"])
def test_a_canary_with_other_values_is_not_ready(copy: Path, guard_name: str) -> None:
    folder = copy / guard_name / "1"
    data = json.loads((folder / "manifest.json").read_text())
    data["canary"]["values"][0] += 0.5
    (folder / "manifest.json").write_text(json.dumps(data))
    with serve(copy) as server, pytest.raises(errors.CanaryFailed):
        wait_ready(server)


def test_one_guard_alone_can_be_served(copy: Path) -> None:
    shutil.rmtree(copy / "gen_guard")
    with serve(copy) as server, GuardClient(server.url) as client:
        server.wait_ready(lambda: canary.check(client, server.manifests))
        assert client.stream_step("one", prompt="Hi.", start=True, end=True).prompt_verdict
        with pytest.raises(errors.GuardNotServed):
            client.classify("Hi.")


def test_a_python_without_a_stub_or_a_shared_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.sysconfig, "get_config_var", lambda _: "/nowhere")
    monkeypatch.setattr(installation, "_linker_folders", lambda _: [])
    monkeypatch.setattr(installation.sys, "base_prefix", "/nowhere")
    with pytest.raises(errors.UnsupportedPython, match="libpython"):
        installation.libpython_folder()


def test_a_python_that_the_wheel_has_no_stub_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.UnsupportedPython, match=r"3\.1"):
        installation.stub(tmp_path)


def test_the_manifest_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(errors.CorruptFile, match="export the checkpoint again"):
        Manifest.read(tmp_path)
