"""Servers of the tests, and a copy of the stream guard with other parameters."""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path

from qwen3guard_client import GuardClient
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings


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
