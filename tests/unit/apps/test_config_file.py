"""--config: every option of a verb can stand in the file, means what its flag means, and is checked as its flag is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qwen3guard_apps.cli.main import parser

VERBS = ("proxy", "serve")
SAMPLES: tuple[Any, ...] = (7, "strict", "loose", "x.pem", "http://127.0.0.1:8080/v1", "127.0.0.1", "guard:9")


def options(verb: str) -> dict[str, argparse.Action]:
    """The options of a verb by the names that they have in a file, read from its parser."""
    (verbs,) = [each for each in parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return {
        max(action.option_strings, key=len)[2:]: action
        for action in verbs.choices[verb]._actions
        if action.help is not argparse.SUPPRESS and action.dest not in ("help", "config")
    }


def parsed(verb: str, *words: str) -> dict[str, Any]:
    found = vars(parser().parse_args([verb, *words]))
    return {name: value for name, value in found.items() if name not in ("config", "run")}


def from_file(verb: str, path: Path, text: str, *words: str) -> dict[str, Any]:
    path.write_text(text, encoding="utf-8")
    return parsed(verb, "--config", str(path), *words)


def values(action: argparse.Action) -> Iterator[Any]:
    """Values that an option may take, other than its default."""
    samples = [True] if action.nargs == 0 else [*(action.choices or SAMPLES)]
    yield from (each for each in samples if each != action.default)


def as_words(name: str, value: Any) -> list[str]:
    return (
        [f"--{name}"] if value is True else [f"--{name}={each}" for each in ([value], value)[isinstance(value, list)]]
    )


@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb in VERBS for name in options(verb)])
def test_an_option_in_the_file_is_its_flag(
    verb: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    action, default = options(verb)[name], parsed(verb)
    tried = 0
    for value in values(action):
        given = [value] if isinstance(action, argparse._AppendAction) else value
        try:
            flags = parsed(verb, *as_words(name, given))
        except SystemExit:
            continue
        if isinstance(value, int) != isinstance(flags[action.dest], int | float):
            continue  # a number for a path: a flag has no types
        assert flags != default
        for spelling in (name, name.replace("-", "_")):
            assert from_file(verb, tmp_path / "c.toml", f"{spelling} = {json.dumps(given)}\n") == flags
        tried += 1
    assert tried, f"no sample value suits --{name}"
    capsys.readouterr()


def test_a_flag_has_priority_and_so_has_what_it_excludes(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    text = 'max-in-flight = 5\nblock = ["PII"]\nthresholds = "t.json"\njson = true\nport = 9000\n'
    found = from_file("proxy", file, text, "--max-in-flight=6", "--block=Violent", "--mode=loose")
    assert (found["max_in_flight"], found["block"], found["thresholds"], found["mode"]) == (
        6,
        ["Violent"],
        None,
        "loose",
    )
    assert (found["json"], found["port"]) == (True, 9000)
    assert from_file("proxy", file, text, "--max-in-flight=64")["max_in_flight"] == 64  # also the flag's own default


def test_the_file_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_URL", "variable:1")
    assert from_file("proxy", tmp_path / "c.toml", "")["url"] == "variable:1"
    assert from_file("proxy", tmp_path / "c.toml", 'url = "file:2"')["url"] == "file:2"
    assert from_file("proxy", tmp_path / "c.toml", 'url = "file:2"', "--url", "flag:3")["url"] == "flag:3"


@pytest.mark.parametrize(
    ("verb", "text", "words"),
    [
        ("proxy", "max-in-fligth = 5", "no option 'max-in-fligth'; do you mean 'max-in-flight'?"),
        ("proxy", 'token = "abc"', "no option 'token'; do you mean 'token-file'?"),
        ("proxy", 'config = "x"', "no option 'config'"),
        ("proxy", "debug = true", "no option 'debug'"),
        ("proxy", 'help = "x"', "no option 'help'"),
        ("proxy", "[proxy]\nport = 1", "no option 'proxy'"),
        ("proxy", 'max-in-flight = "5"', "max-in-flight must be a number"),
        ("proxy", "max-in-flight = 5.5", "max-in-flight: invalid"),
        ("proxy", "max-in-flight = 0", "max-in-flight: 0 is not above 0"),
        ("proxy", "max-in-flight = true", "max-in-flight is neither"),
        ("proxy", "max-in-flight = [5]", "max-in-flight must be one value"),
        ("proxy", "timeout = nan", "timeout: nan is not a finite number"),
        ("proxy", "timeout = inf", "timeout: inf is not a finite number"),
        ("proxy", "host = 127", "host must be a string"),
        ("proxy", "token-file = 5", "token-file must be a string"),
        ("proxy", "port = 70000", "port: 70000 is not a port"),
        ("proxy", 'mode = "strikt"', "mode: invalid choice"),
        ("proxy", 'mode = "loose"\nthresholds = "t.json"', "not allowed with"),
        ("proxy", 'block = "PII"', "block must be a list"),
        ("proxy", 'block = ["Pii"]', "block: invalid choice"),
        ("proxy", "block = []", "block is an empty list"),
        ("proxy", 'tls = "yes"', "tls must be true or false"),
        ("proxy", "port = 1\nport = 2", "is not TOML"),
        ("proxy", "max_choices = 1\nmax-choices = 2", "there twice"),
        ("proxy", "host = 2026-01-01", "host is neither"),
        ("proxy", 'upstream = "llm:80"', "upstream: The upstream must be a base URL"),
        ("proxy", 'url = "x:y"', "url: The url has the port 'y'"),
        ("serve", "grpc-port = -1", "grpc-port: -1 is not a port"),
        ("serve", "url = 'x'", "no option 'url'"),
    ],
)
def test_what_is_wrong_is_refused_as_a_flag_is_and_names_file_and_key(
    verb: str, text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        from_file(verb, tmp_path / "c.toml", text)
    assert left.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"qwen3guard {verb}: error: {tmp_path / 'c.toml'}: ")
    assert words in last


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin.toml").write_bytes(b'host = "\xe9"')
    (tmp_path / "mark.toml").write_bytes(b"\xef\xbb\xbfport = 5")
    (tmp_path / "nul.toml").write_text(r'log-file = "a\u0000b"')
    assert parsed("proxy", "--config", str(tmp_path / "mark.toml"))["port"] == 5
    for path, words in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "latin.toml", "UTF-8"),
        (tmp_path / "nul.toml", "log-file has a NUL character"),
    ):
        with pytest.raises(SystemExit):
            parsed("proxy", "--config", str(path))
        assert words in capsys.readouterr().err
