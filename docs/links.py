"""A hook of mkdocs. The site also has pages that stand elsewhere in the repository, since they belong there: OUTSIDE. A
page may link to any file; where the site does not hold it, the link leads to the repository, or only names the file."""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

OUTSIDE = {
    "README.md": "readme.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "deploy/README.md": "deploy.md",
    "demo/README.md": "demo.md",
}
"""The pages that stand outside docs/, and their names on the site."""
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)]*)?\)")
DEFINED = re.compile(r"^\[([^\]]+)\]: (?!https?:)(\S+)$", re.MULTILINE)
FENCES = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_config(config: Any, **_: Any) -> None:
    """The repository's address is pyproject.toml's, once it is no placeholder any more."""
    project = tomllib.loads((_root(config) / "pyproject.toml").read_text())["project"]
    if "git.example" not in project["urls"]["Repository"]:
        config.repo_url, config.repo_name = project["urls"]["Repository"], project["name"]


def on_files(files: Any, config: Any, **_: Any) -> None:
    """Adds the pages that stand outside docs/."""
    from mkdocs.structure.files import File

    for place, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(_root(config) / place).read_text(encoding="utf-8")))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any, **_: Any) -> str:
    """Leads each link to its page on the site, to `repo_url`, or only names the file; not within blocks of code."""
    name = page.file.src_uri
    place = next((place for place, shown in OUTSIDE.items() if shown == name), f"docs/{name}")
    repository = config.repo_url and f"{config.repo_url.rstrip('/')}/blob/main"

    def led(link: re.Match[str]) -> str:
        text, target, anchor = (
            link[1],
            posixpath.normpath(posixpath.join(posixpath.dirname(place), link[2])),
            link[3] or "",
        )
        shown = OUTSIDE.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if shown is not None and files.get_file_from_path(shown):
            return f"[{text}]({shown}{anchor})"
        if repository:
            return f"[{text}]({repository}/{target}{anchor})"
        return f"[{text}]" if text.startswith("!") else text if text.startswith("`") else f"`{target}`"

    defined = dict(DEFINED.findall(markdown))

    def in_place(link: re.Match[str]) -> str:
        return f"[{link[1]}]({defined[link[1]]})" if link[1] in defined else link[0]

    parts = FENCES.split(DEFINED.sub("", markdown))
    parts[::2] = [LINK.sub(led, re.sub(r"\[([^\]]+)\](?![(\[])", in_place, part)) for part in parts[::2]]
    return "".join(parts)


def _root(config: Any) -> Path:
    return Path(config.config_file_path).parent
