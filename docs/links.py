"""A hook of mkdocs: a page may link to a file of the repository, which the built site does not hold."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Leads to `repo_url` where mkdocs.yml has one, else only names the file."""
    if config.repo_url:
        return OUTSIDE.sub(lambda link: f"[{link[1]}]({config.repo_url.rstrip('/')}/blob/main/{link[2]})", markdown)
    return OUTSIDE.sub(lambda link: f"`{link[2]}`", markdown)
