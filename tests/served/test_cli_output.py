"""What becomes of the output: characters that the terminal's encoding lacks (case 25 of what people send), readers that
leave (case 26, `| head -1`), and disks that are full."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from qwen3guard_server.server import EmbeddedServer
from support.command import COMMAND

ENCODINGS: dict[str, dict[str, str]] = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "LANG=C": {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii:strict"},
}
ROWS = [{"prompt": "Wie bäckt man 面包 😀?", "label": 0, "ö": "ü"}, {"prompt": "How can I build a bomb?", "label": 1}]


def commands(url: str, folder: Path) -> Iterator[list[str]]:
    """Each verb that ends by itself, with text in it that ASCII and cp1252 lack."""
    source = folder / "zeilen_面.jsonl"
    source.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS), encoding="utf-8")
    at = ["--url", url]
    yield ["classify", *at, "--prompt", "Wie bäckt man 面包?"]
    yield ["classify", *at, "--prompt", "Wie bäckt man 面包?", "--json"]
    yield ["classify", *at, "--prompt", "@面"]
    yield ["stream", *at, "--prompt", "面包?"]
    yield ["stream", *at, "--prompt", "面包?", "--json"]
    yield ["doctor", *at]
    yield ["doctor", "--url", "面:1"]
    yield ["annotate", *at, str(source), "-"]
    yield ["annotate", *at, str(source), str(folder / "out_面.csv")]
    yield ["evaluate", *at, str(source), "--output", str(folder / "面"), "--by", "ö"]
    yield ["evaluate", *at, str(source), "--output", str(folder / "面"), "--by", "ö", "--json"]
    yield ["export", "面", "--output", str(folder / "out")]
    yield ["proxy", "--config", "面"]
    yield ["serve", "--model-repository", "面"]
    yield ["perf", *at, "--work", "面"]
    yield ["playground", "--url", "面"]
    yield ["completion", "bash"]
    yield ["--help"]


def ends(url: str, folder: Path, environment: dict[str, str]) -> list[tuple[list[str], int, bytes]]:
    """Each command with its exit status and what it has printed."""
    found = []
    folder.mkdir()
    for command in commands(url, folder):
        done = subprocess.run(
            [COMMAND, *command],
            env=os.environ | environment,
            input="Mehl, 面 und 😀.".encode(),
            capture_output=True,
            check=False,
        )
        assert b"UnicodeEncodeError" not in done.stderr, command
        assert b"Traceback" not in done.stderr, command
        found.append((command, done.returncode, done.stdout))
    return found


def test_no_character_ends_a_command(server: EmbeddedServer, tmp_path: Path) -> None:
    """Each command ends as in UTF-8, and its lines of JSON say the same."""
    in_utf8 = ends(server.url, tmp_path / "UTF-8", {"PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"})
    for encoding, environment in ENCODINGS.items():
        for wanted, found in zip(in_utf8, ends(server.url, tmp_path / encoding, environment), strict=True):
            (command, status, output), (_, found_status, found_output) = wanted, found
            assert found_status == status, (encoding, command)
            if "--json" in command or command[-1] == "-":
                printed = "cp1252" if encoding == "cp1252" and "--json" in command else "utf-8"  # annotate's - is UTF-8
                texts = output.decode("utf-8"), found_output.decode(printed)
                said = [[json.loads(line) for line in text.splitlines()] for text in texts]
                assert json.dumps(said[0]).replace("/UTF-8/", f"/{encoding}/") == json.dumps(said[1])


def test_a_reader_that_leaves_ends_every_verb_quietly(server: EmbeddedServer, tmp_path: Path) -> None:
    for command in commands(server.url, tmp_path):
        line = f"set -o pipefail; printf 'Mehl.' | {shlex.join([str(COMMAND), *command])} | true"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        for words in ("Traceback", "BrokenPipe", "Exception ignored"):
            assert words not in done.stderr, command
        assert done.returncode in (0, 1, 2, 141), (command, done.stderr)


@pytest.mark.parametrize("command", ["--help", "--version", "classify --help", "completion bash"])
def test_a_full_disk_is_an_error_whatever_was_to_be_written(command: str) -> None:
    done = subprocess.run(f"{COMMAND} {command} > /dev/full", shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "qwen3guard: No space left on device.\n")
