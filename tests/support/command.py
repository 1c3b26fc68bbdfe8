"""The command line as a person runs it: a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.executable).parent / "qwen3guard"


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
