"""Where Gen's answer ends, as the files of its checkpoint say, which travel with the export."""

from __future__ import annotations

import json
from pathlib import Path

from qwen3guard_contract.errors import CorruptFile

FILES = ("config.json", "generation_config.json")


def end_ids(folder: Path, im_end: int) -> frozenset[int]:
    """The token ids that end an answer: `im_end`, the id of `<|im_end|>`, and the eos ids of FILES.

    Raises CorruptFile for a file that is not a JSON object.
    """
    ids = {im_end}
    for path in (folder / name for name in FILES):
        if not path.is_file():
            continue
        try:
            eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (AttributeError, ValueError, RecursionError):
            raise CorruptFile(f"{path} is not a JSON object.") from None
        ids.update(value for value in (eos if isinstance(eos, list) else [eos]) if type(value) is int)
    return frozenset(ids)
