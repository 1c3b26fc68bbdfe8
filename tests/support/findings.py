"""What a doctor finds, and a manifest to make it find something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen3guard_apps.doctor.doctor import Examination
from qwen3guard_apps.doctor.findings import Finding


def failed(found: list[Finding]) -> dict[str, str]:
    return {each.check: each.said for each in found if each.state == "failed"}


def examine(repository: Path | None = None, url: str | None = None) -> dict[str, str]:
    return failed(list(Examination(repository, url).findings()))


def change(manifest: Path, **values: Any) -> None:
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | values))
