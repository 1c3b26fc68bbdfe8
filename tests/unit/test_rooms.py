"""Which test stands in which room, and what a room may load."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings
from support.places import ROOT

TESTS = ROOT / "tests"
ROOMS = ("unit", "gpu", "oracle", "served", "lifecycle", "deploy")
MODULES = sorted(TESTS.rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def naming_tests(names: Iterator[str]) -> list[str]:
    return [
        name
        for name in names
        if any(part == "conftest" or part.startswith("test_") for part in name.split("."))
        or name.split(".")[0] in (*ROOMS, "tests")
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_is_imported(path: Path) -> None:
    assert naming_tests(imported(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import test_gen",
        "from test_gen import Scripted",
        "from unit.test_gen import Scripted",
        "from unit import test_gen",
        "from tests.unit import apps",
        "from . import test_gen",
        "from conftest import ROOT",
        "import conftest",
    ],
)
def test_an_imported_test_is_noticed(line: str) -> None:
    assert naming_tests(imported(ast.parse(line)))


def test_every_test_stands_in_a_room() -> None:
    found = {path.relative_to(TESTS).parts[0] for path in MODULES if path.name.startswith("test_")}
    assert found == set(ROOMS)
    assert not list((TESTS / "support").rglob("test_*.py"))


@pytest.mark.parametrize("name", ["torch", "transformers", "optimum"])
def test_the_oracle_cannot_be_loaded_here(name: str) -> None:
    with pytest.raises(ImportError):
        importlib.import_module(name)


def test_no_server_can_be_started_here(repository: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="starts a server"), EmbeddedServer(ServerSettings(repository)):
        pass
