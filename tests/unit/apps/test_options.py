"""The options of the command line: each says what it does, and what it is by default; a wrong port is one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest
from qwen3guard_apps.cli.main import main, parser


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


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--url=x:y", "The url has the port 'y'; a port is a number from 1 to 65535."),
        ("--url=x:0", "The url has the port '0'"),
        ("--url=x:99999", "The url has the port '99999'"),
        ("--url=", "The url must be a host and a port"),
        ("--timeout=1e300", "The timeout_s must be a number of seconds from 0 to 1000000000."),
        ("--debounce=10000000", "The debounce must be from 1 to"),
        ("--in-flight=0", "0 is not above 0"),
        ("--host=", "it is empty"),
        ("--address= ", "it is empty"),
        ("--tls-server-name=", "it is empty"),
        ("--upstream=http://127.0.0.1:99999/v1", "must be a base URL"),
        ("--upstream=http://127.0.0.1:x/v1", "must be a base URL"),
        ("--upstream=http://x..y/v1", "must be a base URL"),
        ("--upstream=http://[::1/v1", "must be a base URL"),
        ("--upstream=http://user:pw@127.0.0.1:1/v1", "may have no user or password"),
    ],
)
def test_what_would_be_refused_later_is_a_wrong_argument_of_every_verb(
    option: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = option.partition("=")[0]
    having = [each for each, verb in verbs().items() if name in verb._option_string_actions]
    assert having
    for each in having:
        with pytest.raises(SystemExit) as left:
            parser().parse_args([each, option])
        assert left.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"argument {name}: " in said
        assert sentence in said


def test_a_wrong_address_of_the_environment_counts_where_no_other_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_URL", "x")
    assert parser().parse_args(["proxy"]).url == "x"
    assert parser().parse_args(["proxy", "--url", "x:1"]).url == "x:1"


@pytest.mark.parametrize("options", ["proxy --thresholds", "classify --prompt x --token-file", "proxy --config"])
def test_a_file_of_options_without_end_is_not_read(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([*options.split(), "/dev/zero"])
    except SystemExit as left:
        status = int(left.code or 0)
    assert status
    assert "File too large" in capsys.readouterr().err


def test_a_stream_needs_a_prompt_or_messages(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ([], ["--prompt", "Hi.", "--messages", "[]"]):
        with pytest.raises(SystemExit):
            parser().parse_args(["stream", *given])
    assert "--prompt" in capsys.readouterr().err
