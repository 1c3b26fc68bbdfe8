"""The `parameters` that an operator sets in config.pbtxt, or by variables of the environment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from qwen3guard_contract.errors import InvalidParameter, InvalidRequest
from qwen3guard_contract.text import shown
from qwen3guard_contract.thresholds import Thresholds

LARGEST = 2**63 - 1
_NUMBER = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class StatedParameters(dict[str, str]):
    """A model's parameters by name. `variables` names, for each that the environment has set, its variable."""

    variables: Mapping[str, str] = MappingProxyType({})


class Parameters:
    """A model's parameters, read by name. Each method raises InvalidParameter for a missing or wrong value, which stops
    the model from loading."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self._variables = values.variables if isinstance(values, StatedParameters) else {}

    def whole(self, name: str, *, at_least: int = 0, at_most: int = LARGEST) -> int:
        text = self.text(name)
        is_number = text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST))
        if not is_number or not at_least <= int(text) <= at_most:
            to = "on" if at_most == LARGEST else f"to {at_most}"
            raise InvalidParameter(
                f"{self._said(name)} is {shown(text)}; it must be a whole number from {at_least} {to}."
            )
        return int(text)

    def seconds(self, name: str) -> float:
        text = self.text(name)
        value = float(text) if _NUMBER.fullmatch(text) else float("inf")
        if value == float("inf"):
            raise InvalidParameter(f"{self._said(name)} is {shown(text)}; it must be a number of seconds.")
        return value

    def flag(self, name: str) -> bool:
        text = self.text(name)
        if text not in ("true", "false"):
            raise InvalidParameter(f"{self._said(name)} is {shown(text)}; it must be true or false.")
        return text == "true"

    def one_of(self, name: str, choices: Sequence[str]) -> str:
        text = self.text(name)
        if text not in choices:
            raise InvalidParameter(f"{self._said(name)} is {shown(text)}; it must be one of {', '.join(choices)}.")
        return text

    def options(self, name: str) -> Mapping[str, str]:
        """The entries of a JSON object, as text; none if the parameter is empty."""
        text = self.text(name)
        try:
            options = json.loads(text or "{}")
        except (ValueError, RecursionError):
            options = None
        if not isinstance(options, dict):
            raise InvalidParameter(f"{self._said(name)} is {shown(text)}; it must be a JSON object.")
        return {str(key): str(value) for key, value in options.items()}

    def thresholds(self, name: str) -> Thresholds | None:
        """Thresholds as JSON; None if the parameter is empty."""
        text = self.text(name)
        try:
            return Thresholds.parse(text.encode()) if text else None
        except InvalidRequest as error:
            raise InvalidParameter(f"{self._said(name)} is wrong. {error}") from None

    def text(self, name: str) -> str:
        if name not in self._values:
            raise InvalidParameter(f"The parameter {name} is missing from config.pbtxt: export the checkpoint again.")
        return self._values[name].strip()

    def _said(self, name: str) -> str:
        return f"The variable {self._variables[name]}" if name in self._variables else f"The parameter {name}"
