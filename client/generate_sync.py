"""Writes the sync client from the async one. With --check, writes nothing and fails if they differ.

    python client/generate_sync.py [--check]

The async modules are written by hand. The sync modules are committed, and their first line names this program. Real
differences are in two modules with the same names, transport/tasks.py and transport/threads.py. `unasync` (python-trio)
replaces the words, and ruff formats the result.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

CLIENT = Path(__file__).parent
PACKAGE = CLIENT / "qwen3guard_client"
GENERATED = {
    "aio.py": "client.py",
    "stream/aio.py": "stream/stream.py",
    "moderation/aio.py": "moderation/moderation.py",
}
NAMES = {
    "AsyncGuardClient": "GuardClient",
    "AsyncFlowDriver": "FlowDriver",
    "AsyncModeration": "Moderation",
    "AsyncStream": "Stream",
    "tasks": "threads",
}
PHRASES = {
    r"qwen3guard_client\.aio\b": "qwen3guard_client.client",
    r"stream\.aio\b": "stream.stream",
    r"moderation\.aio\b": "moderation.moderation",
    r"AsyncIterable\[[^\]]+\] \| ": "",  # an async client takes both kinds of sources
    r"Awaitable\[(\w+)\]": r"\1",
}
"""Replacements of more than one word. These are made first."""


def generate(source: str) -> str:
    """Returns the text of the sync module."""
    text = (PACKAGE / source).read_text(encoding="utf-8")
    for pattern, replacement in PHRASES.items():
        text = re.sub(pattern, replacement, text)
    with tempfile.TemporaryDirectory() as folder:
        original, written = Path(folder) / "aio.py", Path(folder) / "sync.py"
        original.write_text(text, encoding="utf-8")
        rule = unasync.Rule(original.name, written.name, additional_replacements=NAMES)
        unasync.unasync_files([str(original)], [rule])
        text = written.read_text(encoding="utf-8")
    text = f"# Generated from {Path(source).name} by client/generate_sync.py; do not edit.\n{text}"
    path = PACKAGE / GENERATED[source]
    return _ruff(_ruff(text, path, "check", "--quiet", "--fix-only", "--select", "I,F401"), path, "format")


def _ruff(text: str, path: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(path), "-"]
    return subprocess.run(command, input=text, capture_output=True, encoding="utf-8", check=True).stdout


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="write nothing, and fail if a sync module differs")
    check = arguments.parse_args().check
    if unlisted := sorted(set(CLIENT.rglob("aio.py")) - {PACKAGE / source for source in GENERATED}):
        names = ", ".join(path.relative_to(CLIENT).as_posix() for path in unlisted)
        print(f"{names} has no sync module: name one in GENERATED of client/generate_sync.py", file=sys.stderr)
        return 1
    stale = []
    for source, target in GENERATED.items():
        path, text = PACKAGE / target, generate(source)
        if check and not (path.is_file() and path.read_text(encoding="utf-8") == text):
            stale.append(target)
        elif not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{', '.join(stale)} must be generated anew: python client/generate_sync.py", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
