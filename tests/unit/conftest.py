"""Here no server starts, and nothing loads the oracle: not a test, and not what it imports."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest
from qwen3guard_server.server import EmbeddedServer

ORACLE = ("torch", "transformers", "optimum")


@contextmanager
def without_the_oracle() -> Iterator[None]:
    """Importing it is an ImportError, though a test of another room may have loaded it."""
    loaded = {name: sys.modules[name] for name in ORACLE if name in sys.modules}
    sys.modules.update(dict.fromkeys(ORACLE))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in ORACLE:
            del sys.modules[name]
        sys.modules.update(loaded)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    with without_the_oracle():
        return (yield)


@pytest.fixture(autouse=True)
def _without_the_oracle() -> Iterator[None]:
    with without_the_oracle():
        yield


@pytest.fixture(autouse=True)
def _without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: EmbeddedServer) -> None:
        pytest.fail("A test in unit/ starts a server.")

    monkeypatch.setattr(EmbeddedServer, "_start", refuse)
