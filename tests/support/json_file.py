"""A JSON file of a checkpoint, edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))
