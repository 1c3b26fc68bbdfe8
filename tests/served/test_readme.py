"""The README as a stranger reads it: its commands and its Python are run as written."""

from __future__ import annotations

import pytest
from qwen3guard_server.server import EmbeddedServer
from support.readme import COMMANDS, blocks, run

SAYS = {"perf": "p99", "doctor": "It is ready", "classify": "Safe", "stream": "Safe"}


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
