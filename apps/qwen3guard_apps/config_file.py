"""`--config FILE`: the options of a verb in a TOML file, under the names of the flags. A flag has priority.

A value of the file is checked by the parser as if it were given as a flag, and a wrong one is refused as a flag is.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen3guard_contract.small_file import read_small_file

OPTION = "--config"
AN_ENTRY = 'max-in-flight = 64 or host = "127.0.0.1"'


class _Wrong(Exception):
    """What argparse would end the process for."""


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --config, which works on a parser that is a CommandParser."""
    parser.add_argument(
        OPTION,
        type=Path,
        metavar="FILE",
        help="read options from this TOML file, under their names here; a flag has priority (default: none)",
    )


class CommandParser(argparse.ArgumentParser):
    """Reads the file of --config, where a parser has that option, and does not hide that its help cannot be written."""

    _collects = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, rest = super().parse_known_args(args, namespace)
        path = getattr(parsed, "config", None)
        if path is None or OPTION not in self._option_string_actions:
            return parsed, rest
        try:
            values = self._values(path)
        except _Wrong as wrong:
            self.error(f"{path}: {wrong}")
        with self._without_defaults():
            given, _ = super().parse_known_args(args, argparse.Namespace())
        for name in self._superseded(vars(given)):
            values.pop(name, None)
        for name, value in values.items():
            setattr(parsed, name, value)
        return parsed, rest

    def error(self, message: str) -> Any:
        if self._collects:
            raise _Wrong(message)
        super().error(message)

    def _print_message(self, message: str, file: Any = None) -> None:
        """As argparse's, which says nothing where `file` takes no more."""
        out = file or sys.stderr
        if message and out is not None:
            out.write(message)

    @contextlib.contextmanager
    def _without_defaults(self) -> Iterator[None]:
        """Lets a parse return only what it was given."""
        before = [(action, action.default) for action in self._actions]
        kept, self._defaults = self._defaults, {}
        try:
            for action, _ in before:
                action.default = argparse.SUPPRESS
            yield
        finally:
            self._defaults = kept
            for action, default in before:
                action.default = default

    def _superseded(self, given: dict[str, Any]) -> set[str]:
        """The names that the file cannot set: those given as flags, and those that exclude one of these."""
        groups = [{action.dest for action in group._group_actions} for group in self._mutually_exclusive_groups]
        return set(given).union(*(group for group in groups if group & given.keys()))

    def _values(self, path: Path) -> dict[str, Any]:
        """The options in the file, by their names in a namespace. Raises _Wrong."""
        words: dict[str, list[str]] = {}
        for name, value in _read(path).items():
            option = f"--{name.replace('_', '-')}"
            if option in words:
                raise _Wrong(f"{name} is there twice, once with - and once with _.")
            words[option] = self._words(name, option, value)
        return vars(self._parsed([word for each in words.values() for word in each]))

    def _words(self, name: str, option: str, value: Any) -> list[str]:
        """The words of a command line for one entry of the file. Raises _Wrong."""
        action = self._options().get(option)
        if action is None:
            near = difflib.get_close_matches(option, self._options(), 1)
            raise _Wrong(f"there is no option {name!r}" + (f"; do you mean {near[0][2:]!r}?" if near else "."))
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise _Wrong(f"{name} must be true or false.")
            return [option] if value else []
        repeatable = isinstance(action, argparse._AppendAction)
        if repeatable != isinstance(value, list):
            raise _Wrong(f"{name} must be a list, such as [...]." if repeatable else f"{name} must be one value.")
        if value == []:
            raise _Wrong(f"{name} is an empty list; leave it out to have its default.")
        return [self._word(name, option, action, each) for each in (value if repeatable else [value])]

    def _word(self, name: str, option: str, action: argparse.Action, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _Wrong(f"{name} is neither a string nor a number, such as {AN_ENTRY}.")
        if "\0" in str(value):
            raise _Wrong(f"{name} has a NUL character.")
        word = f"{option}={value}"
        try:
            read = getattr(self._parsed([word]), action.dest)
        except _Wrong as wrong:
            raise _Wrong(f"{name}: {str(wrong).removeprefix(f'argument {option}: ')}") from None
        read = read[0] if isinstance(read, list) else read
        if isinstance(read, int | float) == isinstance(value, str):
            raise _Wrong(f"{name} must be a {'string, in quotes' if isinstance(read, str | Path) else 'number'}.")
        return word

    def _parsed(self, words: list[str]) -> argparse.Namespace:
        """What `words` alone say. Raises _Wrong."""
        self._collects = True
        try:
            with self._without_defaults():
                return super().parse_known_args(words, argparse.Namespace())[0]
        finally:
            self._collects = False

    def _options(self) -> dict[str, argparse.Action]:
        """The options that a file can set."""
        return {
            option: action
            for option, action in self._option_string_actions.items()
            if action.help is not argparse.SUPPRESS and option.startswith("--") and option not in ("--help", OPTION)
        }


def _read(path: Path) -> dict[str, Any]:
    """The table in the file. Raises _Wrong."""
    try:
        return tomllib.loads(read_small_file(path).decode("utf-8-sig"))
    except OSError as error:
        raise _Wrong(f"it cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise _Wrong("it is not valid UTF-8.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _Wrong(f"it is not TOML, such as {AN_ENTRY}: {error}.") from None
