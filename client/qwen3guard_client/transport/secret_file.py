"""Files that hold a token or a key: a warning where others can read them."""

from __future__ import annotations

import logging
import os
import stat
from functools import cache
from pathlib import Path

_OTHERS = 0o077
"""The permissions of anybody but the file's owner."""


@cache
def warn_if_shared(file: Path) -> None:
    """Logs a warning, once for each file, if its mode lets others in. Python writes it to standard error, where nothing
    else is set up.

    Pipes, and files of systems without such modes, are not looked at. Raises OSError.
    """
    mode = file.stat().st_mode
    if os.name == "posix" and stat.S_ISREG(mode) and mode & _OTHERS:
        logging.getLogger(__name__).warning(
            "%s holds a secret, and others than its owner may use it (mode %04o): chmod 600.", file, stat.S_IMODE(mode)
        )
