"""Certificates, tokens and the lock, without a server."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from qwen3guard_apps.cli import serve
from qwen3guard_apps.cli.main import parser
from qwen3guard_client import AsyncGuardClient, GuardClient
from qwen3guard_client.transport.connection import Tls, read_token
from qwen3guard_contract.errors import AccessError, InvalidCredentials
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.server_tls import ServerTls
from qwen3guard_server.settings import ServerSettings
from support.certificates import HOST, TOKEN, WRONG
from support.command import fails, run
from support.places import ROOT


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        (
            lambda certificates: ServerTls(certificates / "none.pem", certificates / "server.key"),
            r"none\.pem cannot be read: No such file",
        ),
        (lambda certificates: ServerTls(certificates, certificates / "server.key"), "cannot be read"),
        (
            lambda certificates: ServerTls(certificates / "text.pem", certificates / "server.key"),
            r"text\.pem holds no certificate",
        ),
        (
            lambda certificates: ServerTls(certificates / "server.pem", certificates / "none.pem"),
            r"none\.pem cannot be read",
        ),
        (
            lambda certificates: ServerTls(certificates / "server.pem", certificates / "text.pem"),
            r"text\.pem holds no key",
        ),
        (
            lambda certificates: ServerTls(certificates / "server.key", certificates / "server.pem"),
            "holds no certificate",
        ),
        (lambda certificates: ServerTls(certificates / "server.pem", certificates / "client.key"), "is not the key"),
        (
            lambda certificates: ServerTls(certificates / "expired.pem", certificates / "expired.key"),
            r"expired\.pem would be refused: .*expired",
        ),
        (lambda certificates: ServerTls(certificates / "nameless.pem", certificates / "nameless.key"), "names no host"),
        (
            lambda certificates: ServerTls(
                certificates / "server.pem", certificates / "server.key", certificates / "ca.pem"
            ),
            "--tls-own-cert",
        ),
        (
            lambda certificates: ServerTls(
                certificates / "server.pem",
                certificates / "server.key",
                certificates / "text.pem",
                certificates / "client.pem",
                certificates / "client.key",
            ),
            r"text\.pem holds no certificate",
        ),
        (
            lambda certificates: ServerTls(
                certificates / "server.pem",
                certificates / "server.key",
                certificates / "ca.pem",
                certificates / "stranger.pem",
                certificates / "stranger.key",
            ),
            r"stranger\.pem would be refused",
        ),
        (
            lambda certificates: ServerTls(
                certificates / "server.pem",
                certificates / "server.key",
                certificates / "ca.pem",
                certificates / "client.pem",
                certificates / "stranger.key",
            ),
            "is not the key",
        ),
    ],
)
def test_unusable_certificates_are_named_before_anything_starts(
    repository: Path, certificates: Path, tls: Callable[[Path], ServerTls], words: str
) -> None:
    with pytest.raises(InvalidCredentials, match=words):
        EmbeddedServer(ServerSettings(repository, tls=tls(certificates)))


def test_a_key_with_a_password_is_refused_and_not_asked_for(certificates: Path) -> None:
    command: list[str | Path] = [
        "openssl",
        "ec",
        "-aes256",
        "-passout",
        "pass:x",
        "-in",
        certificates / "server.key",
        "-out",
        certificates / "locked.pem",
    ]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(InvalidCredentials, match="password"):
        Tls(certificates / "ca.pem", certificates / "server.pem", certificates / "locked.pem")


def test_the_servers_own_client_finds_a_name(certificates: Path) -> None:
    assert (
        ServerTls(certificates / "wildcard.pem", certificates / "wildcard.key").own_client().server_name
        == f"canary.{HOST}"
    )


def test_clients_name_unusable_files_too(certificates: Path) -> None:
    for kind in (GuardClient, AsyncGuardClient):
        with pytest.raises(InvalidCredentials, match="holds no token"):
            kind("127.0.0.1:9", token="two words of a token")
    with pytest.raises(InvalidCredentials, match="both, or neither"):
        Tls(certificates / "ca.pem", cert=certificates / "client.pem")
    with pytest.raises(InvalidCredentials, match="holds no certificate"):
        Tls(certificates / "text.pem")
    fails(
        run("classify", "--url", "127.0.0.1:9", "--prompt", "x", "--tls-ca", certificates / "none.pem"),
        "cannot be read",
    )


def test_the_file_goes_before_the_variable(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token", {"QWEN3GUARD_TOKEN": WRONG}) == TOKEN
    assert read_token(None, {"QWEN3GUARD_TOKEN": WRONG}) == WRONG
    assert read_token(None, {}) is None
    with pytest.raises(AccessError) as caught:
        read_token(None, {"QWEN3GUARD_TOKEN": "short"})
    assert "short" not in str(caught.value)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o400, 0), (0o640, 1), (0o604, 1), (0o644, 1)])
def test_a_secret_that_others_may_read_is_warned_of_once(
    certificates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: int
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "key").write_bytes((certificates / "client.key").read_bytes())
    for file in tmp_path.iterdir():
        file.chmod(mode)
    for _ in range(2):
        read_token(tmp_path / "token")
        Tls(cert=certificates / "client.pem", key=tmp_path / "key")
    said = [record.getMessage() for record in caplog.records]
    for file in tmp_path.iterdir():
        assert len([each for each in said if str(file) in each]) == warned
    assert not [each for each in said if TOKEN in each]


def test_settings_do_not_show_the_token(repository: Path) -> None:
    assert TOKEN not in repr(ServerSettings(repository, token=TOKEN))


def test_the_lock_is_in_step_with_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = map(Requirement, [*project["dependencies"], *extras["serve"], *extras["export"]])
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements" / "serve.lock").read_text())
    assert all(re.match(r"[\w.-]+==[\w.]+ \\\n    --hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    pinned = dict(entry.split(" ")[0].split("==") for entry in entries)
    for requirement in asked:
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


@pytest.mark.parametrize("options", [["--tls-own-cert", "a"], ["--tls-own-cert", "a", "--tls-own-key", "b"]])
def test_the_supervisors_own_certificate_is_of_use_with_a_client_ca_alone(options: list[str]) -> None:
    with pytest.raises(InvalidCredentials, match="--tls-client-ca"):
        serve._settings(parser().parse_args(["serve", *options]))
