"""What the README and the pages beside it name is there."""

from __future__ import annotations

import re
from functools import cache

import pytest
from support.places import ROOT
from support.readme import README

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "demo/README.md"]
PAGES += ["deploy/README.md", "deploy/helm/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    link = r"(?:\]\(|^\[[^]]+\]: )(?!http|#)([^)#\n]+)"
    links = re.findall(link, (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_files_that_contributing_names_in_full_exist() -> None:
    named = re.findall(r"`([\w.]+/[\w./]+\.py)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    places = (ROOT, ROOT / "client" / "qwen3guard_client", ROOT / "runtime" / "qwen3guard_runtime")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


@pytest.mark.parametrize("module", sorted(set(re.findall(r"\b(\w+\.py)\b", README))))
def test_named_modules_exist(module: str) -> None:
    assert module in modules()


@cache
def modules() -> set[str]:
    rooms = (path for path in ROOT.iterdir() if path.is_dir() and path.name not in (".venv", "build"))
    return {path.name for room in rooms for path in room.rglob("*.py")}
