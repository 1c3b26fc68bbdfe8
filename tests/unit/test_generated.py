"""The sync client is the async one without await: a change of either alone is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

GENERATED = ("client.py", "stream/stream.py", "moderation/moderation.py")


def generate(client: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(client / "generate_sync.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def client(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return Path(shutil.copytree(ROOT / "client", tmp_path / "client"))


def test_drift_is_found_and_mended(client: Path) -> None:
    assert generate(client, "--check").returncode == 0
    written = [client / "qwen3guard_client" / name for name in GENERATED]
    before = [path.read_text() for path in written]
    assert all(text.startswith("# Generated from aio.py by client/generate_sync.py; do not edit.\n") for text in before)
    for path in (*written, client / "qwen3guard_client" / "stream" / "aio.py"):
        text = path.read_text()
        path.write_text(text.replace("deadline", "end_s").replace("def close", "def shut").replace("asked", "asks"))
        assert path.read_text() != text
        found = generate(client, "--check")
        assert found.returncode == 1
        assert "must be generated anew: python client/generate_sync.py" in found.stderr
        path.write_text(text)
    for path in written:
        path.unlink()
    assert generate(client).returncode == 0
    assert [path.read_text() for path in written] == before


def test_an_async_module_without_a_sync_one_is_found(client: Path) -> None:
    for folder in (client / "qwen3guard_client" / "transport", client / "another"):
        folder.mkdir(exist_ok=True)
        (folder / "aio.py").write_text("async def wait() -> None: ...\n")
        for arguments in ((), ("--check",)):
            found = generate(client, *arguments)
            assert found.returncode == 1
            assert f"{folder.name}/aio.py has no sync module" in found.stderr
        (folder / "aio.py").unlink()
