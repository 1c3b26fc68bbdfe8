"""The demo guard, exported once and served by one real tritonserver for the whole run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from qwen3guard_client import GuardClient
from qwen3guard_export import export
from qwen3guard_export.repository import place_models
from qwen3guard_server.server import EmbeddedServer

pytest.register_assert_rewrite("support")
hypothesis.settings.register_profile("no times", deadline=None)
hypothesis.settings.load_profile("no times")

from support import certificates as issued  # noqa: E402
from support import real_tokenizer  # noqa: E402
from support.overflowing import FLOAT32, overflowing  # noqa: E402
from support.places import DEMO  # noqa: E402
from support.serving import serve, stream_repository, wait_ready  # noqa: E402


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing is skipped: what would be fails."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome = "failed"
    return report


WAITING = {"lifecycle", "deploy"}
"""Rooms whose tests mostly wait: for servers to start, to stop and to be missed."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mixes the files that wait with those that compute, so that a machine's cores are busy while some tests wait."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = [path for path in files if WAITING & set(path.parts)]
    computing = [path for path in files if path not in waiting]
    step = max(1, len(computing) // (2 * len(waiting))) if waiting else 1
    order = []
    for number, path in enumerate(computing):
        if number % step == 0 and waiting:
            order.append(waiting.pop(0))
        order.append(path)
    items[:] = [item for path in [*order, *waiting] for item in files[path]]


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
def stream_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Serves the Stream guard alone."""
    with serve(stream_repository(repository, tmp_path_factory.mktemp("stream") / "r")) as running:
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
        running.stop(kill=True)


@pytest.fixture(scope="session")
def guard(server: EmbeddedServer) -> Iterator[GuardClient]:
    with GuardClient(server.url) as client:
        yield client


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real Qwen3 tokenizer."""
    return real_tokenizer.make(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    """A repository to break."""
    return Path(shutil.copytree(repository, tmp_path / "repository"))


@pytest.fixture(scope="session")
def eight_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both demo guards in dq8r."""
    folder = tmp_path_factory.mktemp("repository")
    for variant in ("gen", "stream"):
        place_models(folder, export(str(DEMO / variant), folder, weights="dq8r", say=lambda _: None))
    return folder


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return issued.make(tmp_path_factory.mktemp("certificates"))
