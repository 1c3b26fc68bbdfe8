"""`qwen3guard completion SHELL`: prints the script with which a shell completes verbs, options and files. Needs shtab
(the extra `completion`)."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from qwen3guard_contract.errors import ServeError
from qwen3guard_contract.extras import how_to_install

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell",
        choices=SHELLS,
        metavar="SHELL",
        help='bash, zsh or fish; in bash: eval "$(qwen3guard completion bash)"',
    )


def run(arguments: argparse.Namespace) -> None:
    """Raises ServeError where shtab is missing."""
    try:
        import shtab
    except ImportError:
        raise ServeError(f"shtab is not installed: {how_to_install('completion')}.") from None
    from qwen3guard_apps.cli.main import parser

    command = parser()
    _mark_files(command, shtab)
    functions = _complete_whole_choices(command) if arguments.shell != "fish" else ""
    preamble = functions if arguments.shell == "bash" else ""
    print(shtab.complete(command, arguments.shell, preamble=preamble))


def _mark_files(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Says of each option and argument that names a file or a folder that the shell completes it as one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _mark_files(verb, shtab)
        elif action.type is Path or action.dest in ("input", "checkpoint"):
            action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE  # type: ignore[attr-defined]


def _complete_whole_choices(parser: argparse.ArgumentParser) -> str:
    """Lets bash and zsh complete choices with spaces in them as one word each: shtab's scripts would divide them.

    Returns the functions that bash needs for it.
    """
    functions = dict[str, None]()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            functions |= dict.fromkeys(map(_complete_whole_choices, action.choices.values()))
        elif any(" " in str(choice) for choice in action.choices or ()):
            words = " ".join(re.sub(r"[^\w-]", r"\\\g<0>", str(choice)) for choice in action.choices or ())
            name = f"_qwen3guard_choices_of_{action.dest}"
            loop = f'for each in {words}; do each=$(printf %q "$each"); [[ $each == "$1"* ]] && echo "$each"; done'
            functions[f"{name}() {{ local each; {loop}; }}"] = None
            action.complete = {"bash": name, "zsh": f"({words})"}  # type: ignore[attr-defined]
            action.choices = None
    return "\n".join(filter(None, functions))
