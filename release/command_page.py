"""Writes the commands and their options in docs/commands.md from the parser. With --check, writes nothing and fails if
they differ.

    python release/command_page.py [--check]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
BEGIN = "<!-- Written by release/command_page.py from the parser of apps/qwen3guard_apps/cli/main.py. -->"
END = "<!-- The end of what release/command_page.py writes. -->"


def verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each verb, by its name, in the order of --help."""
    (action,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return dict(action.choices)


def commands(parser: argparse.ArgumentParser) -> str:
    """A section for each verb, and one for what stands before the verb."""
    sections = [_section("Before the verb", "", parser)]
    sections += [_section(name, each.description or "", each) for name, each in verbs(parser).items()]
    return "\n\n".join(sections)


def _section(title: str, text: str, parser: argparse.ArgumentParser) -> str:
    rows = "\n".join(_rows(parser))
    return "\n\n".join(part for part in (f"## {title}", text, f"| argument | what it is |\n|---|---|\n{rows}") if part)


def _rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.help is argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
            continue
        said = [_help(parser, action)]
        if action.choices is not None:
            said.append(f"one of {', '.join(f'`{each}`' for each in action.choices)}")
        if action.option_strings and action.required:
            said.append("must be given")
        if others := _excluded(parser, action):
            said.append(f"not with {', '.join(f'`{each}`' for each in others)}")
        yield f"| {_name(action)} | {'; '.join(said)} |"


def _name(action: argparse.Action) -> str:
    """The option with what it takes, as `--url HOST:PORT`, or the name of an argument without one."""
    value = str(action.metavar or ("NAME" if action.choices else action.dest.upper())).replace("|", r"\|")
    if not action.option_strings:
        return f"`{value}`"
    takes = "" if action.nargs == 0 else f" {value}"
    takes += " ..." if action.nargs == "+" else ""
    return ", ".join(f"`{option}{takes}`" for option in action.option_strings)


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The text of --help, for a cell of a table."""
    text = " ".join(parser._get_formatter()._expand_help(action).split())
    return text.replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")


def _excluded(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    groups = [each._group_actions for each in parser._mutually_exclusive_groups if action in each._group_actions]
    return [each.option_strings[-1] for group in groups for each in group if each is not action]


def page(written: str, text: str) -> str:
    """The page `written` with `text` in the place that is generated."""
    before, _, rest = written.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    arguments = argparse.ArgumentParser(description="Write the commands and options in docs/commands.md.")
    arguments.add_argument("--check", action="store_true", help="write nothing, and fail if they differ")
    check = arguments.parse_args().check
    os.environ.pop("GUARD_URL", None)  # it would stand in the page as the default of --url
    from qwen3guard_apps.cli.main import parser

    written = PAGE.read_text(encoding="utf-8")
    new = page(written, commands(parser()))
    if not check:
        PAGE.write_text(new, encoding="utf-8")
    elif new != written:
        sys.exit("docs/commands.md differs from the parser: run python release/command_page.py")


if __name__ == "__main__":
    main()
