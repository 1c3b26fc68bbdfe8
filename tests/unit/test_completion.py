"""`qwen3guard completion`: a real bash completes verbs, options, their values and files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from qwen3guard_apps.cli import completion
from qwen3guard_contract import errors
from qwen3guard_contract.labels import Category
from support.command import COMMAND, run


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "qwen3guard.bash"
    file.write_bytes(run("completion", "bash").stdout)
    return file


def completed(script: Path, *words: str, folder: Path | None = None) -> list[str]:
    """What bash offers for the last of the words behind `qwen3guard`."""
    line = ["qwen3guard", *words]
    code = """
        source "$1"; shift
        complete -p qwen3guard > /dev/null || exit 9
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        function=$(complete -p qwen3guard | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        "$function" qwen3guard "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", code, "bash", script, *line], capture_output=True, text=True, check=False, cwd=folder
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(filter(None, done.stdout.splitlines()))


def test_bash_completes(script: Path, tmp_path: Path) -> None:
    assert completed(script, "cl") == ["classify"]
    assert set(completed(script, "")) >= {"serve", "proxy", "annotate", "completion"}
    assert completed(script, "classify", "--pro") == ["--prompt"]
    assert set(completed(script, "proxy", "--on-flag", "")) == {"stop", "mark", "error"}
    assert completed(script, "completion", "z") == ["zsh"]
    assert completed(script, "proxy", "--block", "Sui") == ["Suicide\\ \\&\\ Self-Harm"]
    assert completed(script, "stream", "--block", "Suicide\\ ") == ["Suicide\\ \\&\\ Self-Harm"]
    assert len(completed(script, "proxy", "--block", "")) == len(Category)
    (tmp_path / "rows.jsonl").touch()
    assert "rows.jsonl" in completed(script, "annotate", "ro", folder=tmp_path)
    assert "rows.jsonl" in completed(script, "proxy", "--config", "ro", folder=tmp_path)
    assert completed(script, "classify", "--debu") == []  # hidden in help, and here


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_each_shell_has_its_script_with_every_verb(shell: str) -> None:
    found = run("completion", shell)
    assert (found.returncode, found.stderr) == (0, b"")
    for verb in (b"classify", b"annotate", b"proxy", b"on-guard-error"):
        assert verb in found.stdout
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=found.stdout, capture_output=True, check=False).returncode == 0


def test_without_shtab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    with pytest.raises(errors.ServeError, match=r"pip install .*\[completion\]"):
        completion.run(__import__("argparse").Namespace(shell="bash", command=None))


def test_the_command_does_not_load_shtab_otherwise() -> None:
    code = "import sys; from qwen3guard_apps.cli.main import parser; parser(); print('shtab' in sys.modules)"
    python = COMMAND.parent / "python"
    assert subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
