"""Where a checkpoint comes from: folders, and both hubs' own clients against a hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from qwen3guard_contract.errors import CheckpointNotFound
from qwen3guard_export.checkpoint.checkpoint import open_checkpoint
from qwen3guard_export.checkpoint.sources import checkpoint_folder, on_hub
from support.random_checkpoint import make
from support.serving import free_port

MODEL = "Qwen/Qwen3Guard-Gen-0.6B"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISION = "v2"


class Hub(ThreadingHTTPServer):
    """Serves the files of `folder` as MODEL, as Hugging Face's hub does and as ModelScope's does. `asked` has the
    paths."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.folder = folder
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


class Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.server.asked.append(path)
        if path in {f"/api/models/{MODEL}/revision/{revision}" for revision in (REVISION, "main")}:
            names = [{"rfilename": name} for name in self.server.files()]
            self.send(json.dumps({"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": names}).encode())
        elif path.startswith(f"/api/models/{MODEL}/"):
            self.send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/{MODEL}/resolve/{COMMIT}/"):
            self.send_file(path.rpartition("/")[2])
        elif path == f"/api/v1/models/{MODEL}/repo/files" and query.get("Revision") in ("master", REVISION):
            rows = [
                {"Path": name, "Name": name, "Type": "blob", "Size": len(data), "Sha256": digest(data)}
                for name, data in self.server.files().items()
            ]
            self.send(json.dumps({"Code": 200, "Success": True, "Data": {"Files": rows, "TotalCount": 0}}).encode())
        elif path == f"/api/v1/models/{MODEL}/repo":
            self.send_file(query["FilePath"])
        else:
            code = {"X-Error-Code": "RepoNotFound"}
            self.send(b'{"Code": 10010205001, "Message": "not found", "Success": false}', 404, code)

    do_HEAD = do_GET  # noqa: N815 (http.server's own name)

    def send_file(self, name: str) -> None:
        data = self.server.files()[name]
        self.send(data, headers={"ETag": f'"{digest(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    with Hub(folder) as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serving(make(tmp_path_factory.mktemp("hub") / "model", "gen", layers=1)) as running:
        yield running


def opened(source: str, endpoint: str, home: Path, revision: str | None = None) -> str:
    """What a process of its own finds, since both clients read their variables when they are imported: the folder's
    files, or the error."""
    code = (
        "import sys; from qwen3guard_export.checkpoint.checkpoint import open_checkpoint\n"
        "from qwen3guard_contract.errors import CheckpointNotFound\n"
        "try:\n    found = open_checkpoint(sys.argv[1], *sys.argv[2:])\n"
        "    print(found.source, *sorted(each.name for each in found.folder.iterdir() if each.is_file()))\n"
        "except CheckpointNotFound as error:\n    print(error)"
    )
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    variables |= {"MODELSCOPE_ENDPOINT": endpoint, "MODELSCOPE_CACHE": str(home)}
    command = [sys.executable, "-c", code, source, *([revision] if revision else [])]
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=True, cwd=home, timeout=100
    )
    return done.stdout.strip()


@pytest.mark.parametrize("prefix", ["", "modelscope:"])
def test_a_model_is_downloaded_from_the_hub_that_is_named(prefix: str, hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "modeling.py").write_text("raise SystemExit")  # code is never asked for
    for revision in (None, REVISION):
        home = tmp_path / str(revision)
        home.mkdir()
        name, *files = opened(f"{prefix}{MODEL}", hub.url, home, revision).split()
        assert name == f"{prefix}{MODEL}" + (f"@{revision}" if revision else "")
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
        assert "modeling.py" not in files


@pytest.mark.parametrize(("prefix", "called"), [("", "Hugging Face's hub"), ("modelscope:", "ModelScope")])
def test_what_is_wrong_with_a_hub_is_told_apart(prefix: str, called: str, hub: Hub, tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    unreachable = opened(f"{prefix}{MODEL}", nowhere, tmp_path)
    assert f"{called} ({nowhere}) cannot be reached" in unreachable
    no_model = opened(f"{prefix}Qwen/Other", hub.url, tmp_path)
    assert f"{called} ({hub.url}) has no" in no_model
    no_revision = opened(f"{prefix}{MODEL}", hub.url, tmp_path, "v9")
    assert "revision v9" in no_revision
    assert len({unreachable, no_model, no_revision}) == 3


def test_modelscope_without_its_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(CheckpointNotFound, match=r"pip install .*\[modelscope\]"):
        open_checkpoint(f"modelscope:{MODEL}")


@pytest.mark.parametrize("revision", ["", "a b", "v1\n", "$(x)", "x" * 201])
def test_a_revision_that_is_none_is_refused(revision: str) -> None:
    with pytest.raises(CheckpointNotFound, match="is not the name of a branch"):
        checkpoint_folder(MODEL, revision)


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    assert checkpoint_folder(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointNotFound, match="has no revisions"):
        checkpoint_folder(str(tmp_path), "main")


def test_the_hub_of_an_option_is_that_of_a_prefix() -> None:
    assert on_hub(MODEL, "modelscope") == on_hub(f"modelscope:{MODEL}", "modelscope") == f"modelscope:{MODEL}"
    assert on_hub(MODEL, "huggingface") == MODEL
    assert on_hub(f"modelscope:{MODEL}", "huggingface") == f"modelscope:{MODEL}"
