"""A tokenizer with a chat template of the test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.places import DEMO


@pytest.fixture(scope="module", params=["qwen", "demo"])
def folder(request: pytest.FixtureRequest, qwen_folder: Path) -> Path:
    return qwen_folder if request.param == "qwen" else DEMO / "gen"


def with_template(folder: Path, template: str, config: dict[str, object], special_map: object = None) -> Path:
    """The demo's tokenizer with a template, settings in its tokenizer_config.json, and a special_tokens_map.json."""
    (folder / "tokenizer.json").write_bytes((DEMO / "stream" / "tokenizer.json").read_bytes())
    stored = json.loads((DEMO / "stream" / "tokenizer_config.json").read_text(encoding="utf-8"))
    changed = {key: value for key, value in (stored | config).items() if value != "gone"}
    (folder / "tokenizer_config.json").write_text(json.dumps(changed | {"chat_template": template}))
    if special_map is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(special_map))
    return folder
