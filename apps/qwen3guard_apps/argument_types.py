"""Types of command-line arguments that several verbs share: numbers above 0, ports, and what the client accepts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.policy import Policy


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


def accepted(
    check: Callable[[Any], object], kind: Callable[[str], Any] = str, *, default: object = None
) -> Callable[[str], Any]:
    """The argument type for a value, read by `kind`, for which `check` raises no InvalidRequest. The option's `default`
    is not checked: a wrong one, as the environment may have set it, may still be replaced by a file of --config."""

    def read(text: str) -> Any:
        value = kind(text)
        if value != default:
            try:
                check(value)
            except InvalidRequest as wrong:
                raise argparse.ArgumentTypeError(str(wrong)) from None
        return value

    read.__name__ = kind.__name__
    return read


def not_empty(text: str) -> str:
    """The argument type for a text that means something else, or everything, where it is empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


debounce = accepted(lambda tokens: Policy(debounce=tokens), int)
"""The argument type for a policy's debounce."""


def port(text: str) -> int:
    """The argument type for a TCP port; 0 stands for none, or for any free one."""
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{number} is not a port: give 0 to 65535")
    return number
