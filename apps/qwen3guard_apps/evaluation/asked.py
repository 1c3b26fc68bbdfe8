"""What the answers of `evaluate` are to: answers to other questions are never measured with these labels."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from qwen3guard_contract.errors import InvalidRequest

from qwen3guard_apps.annotation.rows import Fields


def check_asked(answers: Path, fields: Fields) -> None:
    """Notes beside the file `answers` which fields of a row the guard is asked about. Raises InvalidRequest where the
    answers that are there already are to others."""
    note = answers.with_suffix(".asked.json")
    asked = json.dumps(asdict(fields)) + "\n"
    has_answers = answers.is_file() and answers.stat().st_size
    if has_answers and not (note.is_file() and note.read_text(encoding="utf-8") == asked):
        raise InvalidRequest(
            f"The answers in {answers} are to other fields (--prompts-only, --prompt-field and the like): "
            "name another --output, or remove that file."
        )
    note.write_text(asked, encoding="utf-8")
