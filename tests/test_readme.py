"""The README as a stranger reads it: its commands and its Python are run as written."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT
from qwen3guard_contract.manifest import DEMO_NOTICE
from qwen3guard_server.server import EmbeddedServer

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


SAYS = {"perf": "p99", "doctor": "It is ready", "classify": "Safe", "stream": "Safe"}
COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


def run(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_make_demo_shows_verdicts_and_a_second_run_is_quick() -> None:
    assert "make demo" in COMMANDS
    first = run("make demo")
    assert first.returncode == 0, first.stderr
    for words in ("Safe", "Unsafe", "flagged at response token", DEMO_NOTICE, "stopping the server"):
        assert words in first.stdout
    began = time.monotonic()
    assert run("FORCE_COLOR=1 make demo").stdout.count("\033[1;3") >= 4
    print(f"a second run took {time.monotonic() - began:.1f} s")


def test_make_test_is_this() -> None:
    assert "make test" in COMMANDS
    assert "-m pytest" in run("make -n test").stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("make")])
def test_commands_run_as_written(server: EmbeddedServer, command: str) -> None:
    assert "127.0.0.1:8001" in command
    result = run(command.replace("127.0.0.1:8001", server.url))
    assert result.returncode == 0, result.stderr
    assert next(word for verb, word in SAYS.items() if f" {verb} " in command) in result.stdout


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs_as_written(server: EmbeddedServer, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "127.0.0.1:8001" in code
    exec(compile(code.replace("127.0.0.1:8001", server.url), "README.md", "exec"), {})
    assert "Safe" in capsys.readouterr().out


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("module", sorted(set(re.findall(r"\b(\w+\.py)\b", README))))
def test_named_modules_exist(module: str) -> None:
    assert any(Path(path).name == module for path in ROOT.glob("*/**/*.py"))
