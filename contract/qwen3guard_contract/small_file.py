"""Files that a person writes: policies, tokens, options. None is large, and who names another by mistake is told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

MOST_FILE_BYTES = 2**20


def read_small_file(path: Path) -> bytes:
    """Raises OSError, also for more than MOST_FILE_BYTES, of which no more is read."""
    with path.open("rb") as file:
        data = file.read(MOST_FILE_BYTES + 1)
    if len(data) > MOST_FILE_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data
