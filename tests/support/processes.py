"""What a server has below it and what it leaves behind."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [each for child in map(int, found.split()) for each in (child, *children(child))]


def traces(pid: int) -> list[str]:
    """What servers started by process `pid` left behind: shared memory, folders, and processes."""
    tag = f"qwen3guard_{pid}_"
    files = [path for folder in ("/dev/shm", tempfile.gettempdir()) for path in Path(folder).glob(f"*{tag}*")]
    found = subprocess.run(["pgrep", "-fa", tag], capture_output=True, text=True, check=False).stdout
    return [str(path) for path in files] + found.splitlines()


def servers(pid: int) -> set[str]:
    """The servers started by process `pid` of which something is there, by the tag in the names of all that they
    have."""
    return set(re.findall(rf"qwen3guard_{pid}_[0-9a-f]{{16}}", "\n".join(traces(pid))))
