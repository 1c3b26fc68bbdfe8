"""How to add an extra of this project to this environment. The project is on no package index, so it comes from where
it came from: a clone, a wheel's file, or a repository."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

PROJECT = "qwen3guard-triton"


def how_to_install(*extras: str) -> str:
    """The command, for a shell, that installs `extras`."""
    return shlex.join([sys.executable, "-m", "pip", "install", *_source(f"[{','.join(extras)}]")])


def _source(extras: str) -> list[str]:
    clone = Path(__file__).parents[2]
    if (clone / "pyproject.toml").is_file():
        return ["--editable", f"{clone}{extras}"]
    try:  # what pip notes of an installation that is not from an index
        noted = json.loads(importlib.metadata.distribution(PROJECT).read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        noted = {}
    url = noted.get("url", "")
    if url.startswith("file:"):
        return [f"{url2pathname(urlparse(url).path)}{extras}"]
    if version := noted.get("vcs_info"):
        return [f"{PROJECT}{extras} @ {version['vcs']}+{url}@{version['commit_id']}"]
    return [f"{PROJECT}{extras}"]
