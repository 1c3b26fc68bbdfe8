"""`qwen3guard doctor` on good and on broken installations and servers: the fault is named, and nothing else fails."""

from __future__ import annotations

import json
import re
from pathlib import Path

from qwen3guard_apps.doctor.findings import Finding
from qwen3guard_server.server import EmbeddedServer
from support.command import run
from support.findings import change, examine, failed
from support.serving import free_port


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
    assert b"/metrics does not answer (Connection refused): serve with --metrics-port." in result.stdout


def test_a_missing_file(copy: Path) -> None:
    (copy / "gen_guard" / "1" / "model.onnx.data").unlink()
    status, found = doctor("--model-repository", copy)
    assert status == 1
    assert list(failed(found)) == ["gen_guard files"]
    assert "model.onnx.data is missing" in failed(found)["gen_guard files"]


def test_one_bit_of_the_weights(copy: Path) -> None:
    weights = copy / "stream_guard" / "1" / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    status, found = doctor("--model-repository", copy)
    assert status == 1
    assert list(failed(found)) == ["stream_guard files"]
    assert "model.onnx.data is not what was exported" in failed(found)["stream_guard files"]


def test_a_foreign_tokenizer(copy: Path) -> None:
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


def test_a_wrong_canary(copy: Path, server: EmbeddedServer) -> None:
    manifest = copy / "gen_guard" / "1" / "manifest.json"
    canary = json.loads(manifest.read_text())["canary"]
    change(manifest, canary=canary | {"values": [value + 0.5 for value in canary["values"]]})
    status, found = doctor("--model-repository", copy, "--url", server.url)
    assert status == 1
    assert list(failed(found)) == ["classify"]
    assert "canary wrongly" in failed(found)["classify"]


def test_a_guard_that_is_exported_and_not_served(copy: Path, server: EmbeddedServer) -> None:
    (copy / "gen_guard").rename(copy / "away")
    assert examine(copy, server.url) == {}
    status, found = doctor("--model-repository", copy / "away" / "1", "--url", server.url)
    assert status == 1
    assert "There is no exported guard in" in failed(found)["repository"]
