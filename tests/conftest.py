"""The demo guard, exported once and served by one real tritonserver for the whole run."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import real_tokenizer
from overflowing import FLOAT32, overflowing
from qwen3guard_client import GuardClient
from qwen3guard_export import export
from qwen3guard_export.repository import place_models
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "demo"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(repository: Path) -> EmbeddedServer:
    return EmbeddedServer(ServerSettings(repository, grpc_port=free_port(), load_s=120))


def stream_repository(repository: Path, folder: Path, **parameters: object) -> Path:
    """A copy of the stream guard's models, with other parameters in stream_guard's config.pbtxt."""
    for name in ("stream_guard", "stream_tokenizer", "stream_step"):
        shutil.copytree(repository / name, folder / name)
    config = folder / "stream_guard" / "config.pbtxt"
    text = config.read_text()
    for name, value in parameters.items():
        text, found = re.subn(rf'(key: "{name}"\s+value {{\s+string_value: ")[^"]*', rf"\g<1>{value}", text)
        assert found == 1
    config.write_text(text)
    return folder


def wait_ready(server: EmbeddedServer) -> None:
    with GuardClient(server.url) as client:
        server.wait_ready(lambda: canary.check(client, server.manifests))


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both demo guards, exported in fp32."""
    folder = tmp_path_factory.mktemp("repository")
    for variant in ("gen", "stream"):
        place_models(folder, export(str(DEMO / variant), folder, say=lambda _: None))
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with serve(repository) as running:
        wait_ready(running)
        yield running


@pytest.fixture(scope="session")
def overflowing_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stream guard whose first layer has an infinite value for the token of overflowing.LETTER."""
    folder = tmp_path_factory.mktemp("overflowing")
    overflowing(folder / "checkpoint", "stream", largest=FLOAT32)
    place_models(folder / "r", export(str(folder / "checkpoint"), folder / "r", say=lambda _: None))
    return folder / "r"


@pytest.fixture(scope="session")
def overflowing_server(overflowing_repository: Path) -> Iterator[EmbeddedServer]:
    with serve(overflowing_repository) as running:
        wait_ready(running)
        yield running


@pytest.fixture(scope="session")
def guard(server: EmbeddedServer) -> Iterator[GuardClient]:
    with GuardClient(server.url) as client:
        yield client


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real Qwen3 tokenizer."""
    return real_tokenizer.make(tmp_path_factory.mktemp("qwen"))
