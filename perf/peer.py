"""A peer: another engine that does the same work, in its own process and its own environment.

It reads one JSON request from each line and answers with one line. Its script and its pinned packages are in peers/.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from types import TracebackType
from typing import Any

PEERS = Path(__file__).parent / "peers"


class Peer:
    """A running peer, as a context manager. `ask` raises RuntimeError, with the path of its log, if it has died."""

    def __init__(self, name: str, python: Path, script: str, *arguments: str, log: Path, **environment: str) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [str(python), str(PEERS / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=os.environ | environment,
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, work: str, **values: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"work": work, **values}) + "\n")
        self._process.stdin.flush()
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"{self.name} died; its last words are in {self._log}")

    def ms(self, work: str, **values: Any) -> float:
        """The milliseconds of the work as the peer measured it, without the communication."""
        return float(self.ask(work, **values)["ms"])


def environment(name: str, folder: Path) -> Path:
    """The Python of the environment that peers/NAME.txt describes; it is made on first use."""
    requirements = (PEERS / f"{name}.txt").read_text()
    home = folder / name
    made, python = home / "made-from.txt", home / "bin" / "python"
    if not made.is_file() or made.read_text() != requirements:
        print(f"making the environment of {name} ...", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        # One package at a time, torch first: the exact version may be on disk, and no other version may replace it.
        for line in requirements.split():
            subprocess.run([*pip, "install", *_constraints(requirements, home), line], check=True)
        # optimum-intel requires torchvision but does not use it here, and PyPI's does not fit every build of torch.
        subprocess.run([*pip, "uninstall", "--yes", "torchvision"], check=True)
        made.write_text(requirements)
    return python


def _constraints(requirements: str, home: Path) -> list[str]:
    path = home / "constraints.txt"
    path.write_text(requirements)
    return ["--constraint", str(path)]
