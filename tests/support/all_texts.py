"""All texts that there are to try a tokenizer with."""

from __future__ import annotations

import json

from support.places import ROOT
from support.texts import TEXTS

SHARED = ROOT.parent / "shared" / "data" / "multilingual.jsonl"


def all_texts() -> list[str]:
    """Ours, and where it stands beside the project the large multilingual set."""
    texts = list(TEXTS)
    if SHARED.is_file():
        texts += [json.loads(line)["text"] for line in SHARED.read_text(encoding="utf-8").splitlines()]
    return texts
