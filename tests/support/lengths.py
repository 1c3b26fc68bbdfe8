"""How long a trial is: short in `make test`, at full length in `make trials`, whose figures the documents have."""

from __future__ import annotations

import os

FULL = os.environ.get("TRIALS") == "full"


def times(short: int, full: int) -> int:
    return full if FULL else short
