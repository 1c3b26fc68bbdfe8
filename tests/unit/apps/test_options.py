"""The options of the command line: each says what it does, and what it is by default; a wrong port is one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest
from qwen3guard_apps.cli.main import parser


def verbs() -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = [each for each in parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(subparsers.choices)


def options(verb: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    yield from (each for each in verb._actions if each.help is not argparse.SUPPRESS)


@pytest.mark.parametrize("name", verbs())
def test_every_option_says_what_it_does_and_its_default(name: str) -> None:
    verb = verbs()[name]
    for option in options(verb):
        assert option.help, option
        said = verb._get_formatter()._expand_help(option)
        if option.option_strings and option.default not in (None, False, 0, argparse.SUPPRESS):
            values = option.default if isinstance(option.default, list) else [option.default]
            default = " ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)
            assert f"(default: {default})" in said, option.option_strings


@pytest.mark.parametrize("command", ["proxy --port", "playground --port", "serve --grpc-port"])
@pytest.mark.parametrize("port", ["70000", "-1", "http"])
def test_a_number_that_is_not_a_port(command: str, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args([*command.split()[:1], f"{command.split()[1]}={port}"])
    assert left.value.code == 2
    assert f"argument {command.split()[1]}: " in capsys.readouterr().err


def test_a_stream_needs_a_prompt_or_messages(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ([], ["--prompt", "Hi.", "--messages", "[]"]):
        with pytest.raises(SystemExit):
            parser().parse_args(["stream", *given])
    assert "--prompt" in capsys.readouterr().err
