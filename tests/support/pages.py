"""The pages of the documentation and their blocks of code."""

from __future__ import annotations

import re
from pathlib import Path

from support.places import ROOT

DOCS = ROOT / "docs"
FENCES = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    found = FENCES.findall(page.read_text(encoding="utf-8"))
    return [block for language, block in found if language in languages]
