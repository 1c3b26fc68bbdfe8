"""Types of command-line arguments that several verbs share: numbers above 0, and ports."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """The argument type for a finite number above 0, read by `kind` (int or float)."""

    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(
                f"{text} is not above 0" if value <= 0 else f"{text} is not a finite number"
            )
        return value

    return number


def port(text: str) -> int:
    """The argument type for a TCP port; 0 stands for none, or for any free one."""
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{number} is not a port: give 0 to 65535")
    return number
