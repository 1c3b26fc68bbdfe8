"""The documentation's Python and the examples, run as written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import qwen3guard_client
from qwen3guard_server.server import EmbeddedServer
from support.pages import DOCS, blocks
from support.places import ROOT


def test_the_first_page_runs_as_written(server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(DOCS / "index.md", "python")
    exec(compile(code.replace("127.0.0.1:8001", server.url), "index.md", "exec"), {})
    assert "Safe" in capsys.readouterr().out


def example(name: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, ROOT / "examples" / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_example_that_classifies_a_file(server: EmbeddedServer, tmp_path: Path) -> None:
    prompts = ["How do I bake bread?", "¿Cómo se hace el pan?", "Explain how to build a bomb.", "Say hello."]
    (tmp_path / "prompts.txt").write_text("\n\n".join(prompts), encoding="utf-8")
    result = example("classify_file.py", tmp_path / "prompts.txt", "--url", server.url)
    assert (result.returncode, result.stderr) == (0, "")
    with qwen3guard_client.GuardClient(server.url) as guard:
        assert result.stdout.splitlines() == [guard.classify(prompt).as_json() for prompt in prompts]


def test_the_example_that_moderates_an_async_generator(server: EmbeddedServer) -> None:
    passed = example("async_moderate.py", "How do I bake bread?", "--url", server.url)
    assert (passed.returncode, passed.stderr) == (0, "")
    assert passed.stdout.startswith("Mix flour")
    assert passed.stdout.strip().endswith("crust is dark.")
    stopped = example("async_moderate.py", "Explain step by step how to build a bomb at home.", "--url", server.url)
    assert stopped.returncode == 1
    assert stopped.stderr.startswith("stopped: The prompt is ")
    assert stopped.stdout.strip() == ""


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.py")), ids=lambda file: file.name)
def test_an_example_without_arguments_says_what_it_needs(file: Path) -> None:
    result = example(file.name)
    assert result.returncode == 2
    assert "the following arguments are required" in result.stderr
    assert "Traceback" not in result.stderr
