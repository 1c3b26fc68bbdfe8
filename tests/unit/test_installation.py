"""What the machine lacks, and what a start that failed is told for: sentences made without a server."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest
from qwen3guard_contract import errors
from qwen3guard_contract.manifest import Manifest
from qwen3guard_server import installation
from qwen3guard_server.server_log import reason

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
        (["I0101 [libprotobuf ERROR x.cc:1] [NO_SUCH_CODE] text", CUDA], "its log says nothing"),
        ([TRITON, CUDA], "failed to load all models"),
        ([CUDA, TRITON], "failed to load all models"),
        ([TRITON, GRPC], "failed to load all models"),
        (['I0101 00:00:00.000000 1 x.cc:1] "loading: gen_guard:1"'], "its log says nothing"),
        ([], "its log says nothing"),
    ],
)
def test_the_guards_own_error_is_the_reason_whatever_triton_writes(lines: list[str], expected: str) -> None:
    assert expected in reason("".join(f"{line}\n" for line in lines))


def test_a_python_without_a_stub_or_a_shared_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: "/nowhere")
    monkeypatch.setattr(installation, "_linker_folders", lambda _: [])
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    with pytest.raises(errors.UnsupportedPython, match="libpython"):
        installation.libpython_folder()


def test_a_python_that_the_wheel_has_no_stub_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.UnsupportedPython, match=r"3\.1"):
        installation.stub(tmp_path)


def test_the_manifest_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(errors.CorruptFile, match="export the checkpoint again"):
        Manifest.read(tmp_path)


def test_a_variable_of_vertex_ai_does_not_reach_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_MODE", "PREDICTION")
    monkeypatch.setenv("KEPT", "1")
    found = installation.environment(Path("/a/b/c"), Path("/d"))
    assert "AIP_MODE" not in found
    assert found["KEPT"] == "1"


@pytest.mark.parametrize("path", ["", "/usr/local/cuda/lib64:/opt/lib"])
def test_libraries_that_the_user_named_are_found_too(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """An empty folder in the list would be the current one."""
    monkeypatch.setenv("LD_LIBRARY_PATH", path)
    found = installation.environment(Path("/a/b/c"), Path("/d"))["LD_LIBRARY_PATH"]
    assert found.split(":") == ["/d", "/a/nvidia_pytriton.libs", *filter(None, path.split(":"))]
