"""What the README names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.places import ROOT
from support.readme import README


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("module", sorted(set(re.findall(r"\b(\w+\.py)\b", README))))
def test_named_modules_exist(module: str) -> None:
    assert any(Path(path).name == module for path in ROOT.glob("*/**/*.py"))
