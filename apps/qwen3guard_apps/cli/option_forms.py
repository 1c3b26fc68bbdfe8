"""Options that the client would refuse are refused by the parser, as wrong arguments, before anything is done."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from qwen3guard_client.arguments import checked_timeout
from qwen3guard_client.transport.address import read_address
from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.policy import Policy

from qwen3guard_apps.annotation.flight import Flight

CHECKS: dict[str, Callable[[Any], object]] = {
    "--url": read_address,
    "--timeout": checked_timeout,
    "--debounce": lambda tokens: Policy(debounce=tokens),
    "--in-flight": lambda calls: Flight(calls, 0),
}
"""What raises InvalidRequest for a wrong value, by the option's name, which means the same in every verb."""


def check_forms(verb: argparse.ArgumentParser) -> None:
    """Adds CHECKS to the options of `verb`."""
    for action in verb._actions:
        for check in (CHECKS[name] for name in action.option_strings if name in CHECKS):
            action.type = _checked(action, check)


def _checked(action: argparse.Action, check: Callable[[Any], object]) -> Callable[[str], Any]:
    kind: Any = action.type or str

    def read(text: str) -> Any:
        value = kind(text)
        if value != action.default:  # which the environment may have set, and a file of --config may replace
            try:
                check(value)
            except InvalidRequest as wrong:
                raise argparse.ArgumentTypeError(str(wrong)) from None
        return value

    read.__name__ = kind.__name__
    return read
