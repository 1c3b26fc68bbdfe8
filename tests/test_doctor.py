"""`qwen3guard doctor` on good and on broken installations and servers: the fault is named, and nothing else fails."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from conftest import free_port
from qwen3guard_apps.doctor import export_checks, machine_checks
from qwen3guard_apps.doctor.doctor import Patient
from qwen3guard_apps.doctor.findings import Finding, run_checks
from qwen3guard_contract import errors
from qwen3guard_server.server import EmbeddedServer
from test_serve import copy, run  # noqa: F401 (copy is a fixture)


def doctor(*arguments: object) -> tuple[int, list[Finding]]:
    result = run("doctor", *arguments, "--json")
    said = result.stderr.decode()
    assert "Traceback" not in said
    found = [Finding(**json.loads(line)) for line in result.stdout.decode().splitlines()]
    failed = [each for each in found if each.state == "failed"]
    assert said.strip().endswith(f"{len(failed)} of the checks failed.") if failed else not said
    for each in found:
        assert each.said.endswith(".")
    return result.returncode, found


def failed(found: list[Finding]) -> dict[str, str]:
    return {each.check: each.said for each in found if each.state == "failed"}


def examine(repository: Path | None = None, url: str | None = None) -> dict[str, str]:
    return failed(list(Patient(repository, url).findings()))


def change(manifest: Path, **values: Any) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | values))


def test_a_good_installation_and_server(repository: Path, server: EmbeddedServer) -> None:
    status, found = doctor("--model-repository", repository, "--url", server.url)
    assert (status, failed(found)) == (0, {})
    states = {each.check: each.state for each in found}
    assert {states[name] for name in states if name not in ("shared memory", "cpu", "gpu")} == {"ok"}
    for name in ("python", "triton", "onnxruntime", "packages", "memory", "server", "classify", "stream_step"):
        assert name in states
    for name in ("gen_guard files", "gen_guard tokenizer", "gen_guard models", "stream_guard files"):
        assert name in states


def test_a_server_alone_needs_no_installation(server: EmbeddedServer) -> None:
    status, found = doctor("--url", server.url)
    assert status == 0
    assert [(each.check, each.state) for each in found] == [
        (name, "ok") for name in ("server", "classify", "stream_step")
    ]
    assert re.search(r"Triton \d+\.\d+\.\d+ with classify 1, stream_step 1\.$", found[0].said)


def test_lines_for_people(server: EmbeddedServer) -> None:
    result = run("doctor", "--url", server.url, "--metrics", f"127.0.0.1:{free_port()}")
    assert result.returncode == 1
    words = [line.split()[:2] for line in result.stdout.decode().splitlines()]
    assert words == [["ok", "server"], ["ok", "classify"], ["ok", "stream_step"], ["failed", "metrics"]]
    assert b"--metrics-port" in result.stdout


def test_a_missing_file(copy: Path) -> None:  # noqa: F811
    (copy / "gen_guard" / "1" / "model.onnx.data").unlink()
    status, found = doctor("--model-repository", copy)
    assert status == 1
    assert list(failed(found)) == ["gen_guard files"]
    assert "model.onnx.data is missing" in failed(found)["gen_guard files"]


def test_one_bit_of_the_weights(copy: Path) -> None:  # noqa: F811
    weights = copy / "stream_guard" / "1" / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    status, found = doctor("--model-repository", copy)
    assert status == 1
    assert list(failed(found)) == ["stream_guard files"]
    assert "model.onnx.data is not what was exported" in failed(found)["stream_guard files"]


def test_a_foreign_tokenizer(copy: Path) -> None:  # noqa: F811
    tokenizer = copy / "guard_tokenizer" / "1" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + " ", encoding="utf-8")
    status, found = doctor("--model-repository", copy)
    assert status == 1
    assert list(failed(found)) == ["gen_guard tokenizer"]
    assert "guard_tokenizer/1/tokenizer.json" in failed(found)["gen_guard tokenizer"]


def test_a_server_that_is_down(repository: Path) -> None:
    url = f"127.0.0.1:{free_port()}"
    status, found = doctor("--model-repository", repository, "--url", url)
    assert status == 1
    assert list(failed(found)) == ["server"]
    assert url in failed(found)["server"]
    assert "qwen3guard serve" in failed(found)["server"]


def test_a_wrong_canary(copy: Path, server: EmbeddedServer) -> None:  # noqa: F811
    manifest = copy / "gen_guard" / "1" / "manifest.json"
    canary = json.loads(manifest.read_text())["canary"]
    change(manifest, canary=canary | {"values": [value + 0.5 for value in canary["values"]]})
    status, found = doctor("--model-repository", copy, "--url", server.url)
    assert status == 1
    assert list(failed(found)) == ["classify"]
    assert "canary wrongly" in failed(found)["classify"]


def test_a_guard_that_is_exported_and_not_served(copy: Path, server: EmbeddedServer) -> None:  # noqa: F811
    (copy / "gen_guard").rename(copy / "away")
    assert examine(copy, server.url) == {}
    status, found = doctor("--model-repository", copy / "away" / "1", "--url", server.url)
    assert status == 1
    assert "holds no exported guard" in failed(found)["repository"]


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
def test_models_of_another_version(copy: Path, breaks: Callable[[Path], object], words: str) -> None:  # noqa: F811
    breaks(copy)
    found = examine(copy)
    assert list(found) == ["stream_guard models"]
    assert words in found["stream_guard models"]


def test_what_an_operator_may_set(copy: Path) -> None:  # noqa: F811
    config = copy / "stream_guard" / "config.pbtxt"
    replace_in(config, 'string_value: "256"', 'string_value: "64"')
    found = {each.check: each.state for each in Patient(copy).findings()}
    assert found["stream_guard models"] == "ok"
    replace_in(config, "max_candidate_sequences: 16384", "max_candidate_sequences: 16")
    found = {each.check: each.state for each in Patient(copy).findings()}
    assert found["stream_guard models"] == "warning"


def test_an_engine_of_another_version(copy: Path) -> None:  # noqa: F811
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


def test_an_old_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.9")
    assert "onnxruntime>=1.25" in examine()["onnxruntime"]


def test_without_the_export_or_the_runtime(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qwen3guard_export.repository", None)
    said = {each.check: each for each in Patient(repository).findings()}
    assert said["gen_guard models"].state == "ok"
    assert "Not compared" in said["gen_guard models"].said
    monkeypatch.setitem(sys.modules, "qwen3guard_runtime", None)
    assert "pip install 'qwen3guard-triton[serve]'" in examine()["installation"]


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


def test_no_manifest_makes_it_stumble(copy: Path) -> None:  # noqa: F811
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
        list(Patient(copy, "127.0.0.1:1")._expected())
    for text in ("", "{", whole[: len(whole) // 2], "[]", "null", '"x"'):
        path.write_text(text)
        assert failed(list(run_checks(export_checks.repository_checks(copy))))
        assert list(Patient(copy, "127.0.0.1:1")._expected())
