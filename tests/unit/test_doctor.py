"""What `qwen3guard doctor` finds without a server."""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from qwen3guard_apps.doctor import doctor, export_checks, machine_checks
from qwen3guard_apps.doctor.doctor import Examination
from qwen3guard_apps.doctor.findings import Finding, run_checks
from qwen3guard_contract import errors
from qwen3guard_contract.extras import how_to_install
from support.findings import change, examine, failed


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (
            lambda r: replace_in(r / "stream_guard/config.pbtxt", "TYPE_FP32", "TYPE_FP16"),
            "differs from this version in output",
        ),
        (lambda r: replace_in(r / "stream_step/config.pbtxt", "ensemble", "symphony"), "stream_step/config.pbtxt"),
        (lambda r: replace_in(r / "stream_guard/config.pbtxt", '"turn_s"', '"turns"'), "lacks the parameter turn_s"),
        (lambda r: (r / "stream_guard/config.pbtxt").unlink(), "cannot be read"),
        (lambda r: replace_in(r / "stream_guard/1/model.py", "refusals", "others"), "not that of this version"),
    ],
)
def test_models_of_another_version(copy: Path, breaks: Callable[[Path], object], words: str) -> None:
    breaks(copy)
    found = examine(copy)
    assert list(found) == ["stream_guard models"]
    assert words in found["stream_guard models"]


def test_what_an_operator_may_set(copy: Path) -> None:
    config = copy / "stream_guard" / "config.pbtxt"
    replace_in(config, 'string_value: "256"', 'string_value: "64"')
    found = {each.check: each.state for each in Examination(copy).findings()}
    assert found["stream_guard models"] == "ok"
    replace_in(config, "max_candidate_sequences: 16384", "max_candidate_sequences: 16")
    found = {each.check: each.state for each in Examination(copy).findings()}
    assert found["stream_guard models"] == "warning"


def test_an_engine_of_another_version(copy: Path) -> None:
    built: dict[str, Any] = {"file": "model.engine", "compute_capabilities": ["8.9"], "capacity": 2112, "profiles": []}
    for package, version, words in (
        ("tensorrt_rtx", "0.1", "built by tensorrt_rtx 0.1"),
        ("tensorrt_of_nobody", "1", "not installed"),
    ):
        change(copy / "gen_guard/1/manifest.json", engine=built | {"package": package, "version": version})
        found = examine(copy)
        assert list(found) == ["gen_guard engine"]
        assert words in found["gen_guard engine"]


def test_a_machine_that_is_too_small(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_checks, "memory_bytes", lambda: 1 << 20)
    assert "do not fit" in examine(repository)["memory"]


class _Nothing(BaseHTTPRequestHandler):
    """A server of other things: it has no metrics."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


def _answer_in_binary(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"\0\1\2\n")


def test_metrics_that_do_not_answer_have_a_plain_reason() -> None:
    def said(url: str) -> str:
        (finding,) = doctor.metrics(url)
        assert finding.state == "failed"
        return finding.said

    with HTTPServer(("127.0.0.1", 0), _Nothing) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"127.0.0.1:{other.server_address[1]}"
        assert said(url).startswith(f"http://{url}/metrics answers with HTTP 404")
        other.shutdown()
    assert said(url) == f"http://{url}/metrics does not answer (Connection refused): serve with --metrics-port."
    with socket.create_server(("127.0.0.1", 0)) as binary:
        threading.Thread(target=_answer_in_binary, args=(binary,), daemon=True).start()
        assert "does not answer (it does not speak HTTP): " in said(f"127.0.0.1:{binary.getsockname()[1]}")


DEVICES = """qwen3guard_load_timestamp_seconds{model="gen_guard"} 1
qwen3guard_device{device="cpu",made_for="cuda",model="gen_guard"} 1
qwen3guard_device{device="cuda",made_for="cpu",model="stream_guard"} 1
"""


class _OnTheCpu(_Nothing):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(DEVICES.encode())


def test_a_guard_that_was_made_for_a_gpu_and_runs_on_the_cpu() -> None:
    with HTTPServer(("127.0.0.1", 0), _OnTheCpu) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found, fallen_back = doctor.metrics(f"127.0.0.1:{server.server_address[1]}")
        server.shutdown()
    assert (found.state, fallen_back.state) == ("ok", "warning")
    assert fallen_back.said.startswith("gen_guard was made for cuda and runs on the CPU: ")


def test_an_old_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.9")
    assert "onnxruntime>=1.25" in examine()["onnxruntime"]


def test_without_the_export_or_the_runtime(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qwen3guard_export.repository", None)
    said = {each.check: each for each in Examination(repository).findings()}
    assert said["gen_guard models"].state == "ok"
    assert "Not compared" in said["gen_guard models"].said
    # The checks are imported anew, without the runtime.
    monkeypatch.delattr("qwen3guard_apps.doctor.export_checks")
    monkeypatch.delitem(sys.modules, "qwen3guard_apps.doctor.export_checks")
    monkeypatch.setitem(sys.modules, "qwen3guard_runtime.engine.integrity", None)
    assert how_to_install("serve") in examine()["installation"]


def test_shared_memory_of_servers_that_are_gone(tmp_path: Path) -> None:
    gone, here = tmp_path / "qwen3guard_999999999_ab", tmp_path / "qwen3guard_1_ab"
    for region in (gone, here):
        region.write_bytes(bytes(1 << 20))
    (found,) = machine_checks.shared_memory(tmp_path)
    assert (found.state, "1 MiB" in found.said, "qwen3guard_999999999_*" in found.said) == ("warning", True, True)
    gone.unlink()
    (found,) = machine_checks.shared_memory(tmp_path)
    assert found.state == "ok"


def test_gpus() -> None:
    assert [found.state for found in machine_checks.gpu([])] == ["ok"]
    assert [found.state for found in machine_checks.gpu([Path("/dev/nvidia0")])] == ["warning"]


def test_a_check_that_fails_itself_is_a_finding() -> None:
    def broken() -> list[Finding]:
        raise ZeroDivisionError("by zero")

    def known() -> list[Finding]:
        raise errors.UnsupportedPython("Use another.")

    found = list(run_checks({"a": broken, "b": known}))
    assert [each.state for each in found] == ["failed", "failed"]
    assert "ZeroDivisionError" in found[0].said
    assert found[1].said == "Use another."


def test_no_manifest_makes_it_stumble(copy: Path) -> None:
    """Values of the wrong type, missing ones, cut files: always findings, never an exception."""
    source = random.Random(5)
    path = copy / "stream_guard" / "1" / "manifest.json"
    whole = path.read_text()
    manifest = json.loads(whole)
    for name in manifest:
        changed = manifest | {name: source.choice([None, 7, "x", [], {}, [1], {"a": "b"}, -1.5])}
        if source.random() < 0.3:
            del changed[name]
        path.write_text(json.dumps(changed))
        list(run_checks(export_checks.repository_checks(copy)))
        list(Examination(copy, "127.0.0.1:1")._expected())
    for text in ("", "{", whole[: len(whole) // 2], "[]", "null", '"x"'):
        path.write_text(text)
        assert failed(list(run_checks(export_checks.repository_checks(copy))))
        assert list(Examination(copy, "127.0.0.1:1")._expected())
