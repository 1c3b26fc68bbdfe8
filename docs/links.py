"""A hook of mkdocs: a page may link to a file of the repository, which the built site does not hold."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_config(config: Any, **_: Any) -> None:
    """The repository's address is pyproject.toml's, once it is no placeholder any more."""
    project = tomllib.loads((Path(config.config_file_path).parent / "pyproject.toml").read_text())["project"]
    if "git.example" not in project["urls"]["Repository"]:
        config.repo_url, config.repo_name = project["urls"]["Repository"], project["name"]


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Leads to `repo_url` where there is one, else only names the file."""
    if config.repo_url:
        return OUTSIDE.sub(lambda link: f"[{link[1]}]({config.repo_url.rstrip('/')}/blob/main/{link[2]})", markdown)
    return OUTSIDE.sub(lambda link: f"`{link[2]}`", markdown)
