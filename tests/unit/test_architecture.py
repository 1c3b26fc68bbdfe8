"""Who may import whom: README's rule, read from the sources. No arrow runs up, and there is no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BELOW = {
    "contract": set[str](),
    "client": {"contract"},
    "export": {"contract"},
    "runtime": {"contract"},
    "server": {"contract", "client"},
    "apps": {"contract", "client", "export", "runtime", "server"},
}
"""The packages that each may import."""
LIGHT = {"numpy"}
"""What the contract may import of others, beside the standard library; the exactness of products needs the engine that
multiplies, which is asked for by name when a guard is loaded."""


def modules() -> dict[str, Path]:
    """Every module of the six packages by its dotted name."""
    found = {}
    for package in ROOT.glob("*/qwen3guard_*"):
        for path in package.rglob("*.py"):
            dotted = ".".join(path.relative_to(package.parent).with_suffix("").parts)
            found[dotted.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """What a file imports anywhere in it, in functions too, but for type checkers alone."""
    skipped = {
        inner
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in {child.lineno for child in ast.walk(node) if isinstance(child, ast.stmt)}
    }
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.lineno not in skipped:
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def package(module: str) -> str:
    return module.partition(".")[0].removeprefix("qwen3guard_")


def room(module: str) -> str:
    """A package's folder, or a module that stands in the package itself."""
    return ".".join(module.split(".")[:2])


def arrows() -> dict[str, set[str]]:
    """Between modules of ours."""
    return {
        module: {target for target in imported(path) if target in MODULES and target != module}
        for module, path in MODULES.items()
    }


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Nodes of one circle in `graph`, or none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_the_packages_are_those_that_are_known() -> None:
    assert {package(module) for module in MODULES} == set(BELOW)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_arrow_runs_up(module: str) -> None:
    ours = {package(target) for target in imported(MODULES[module]) if target.startswith("qwen3guard_")}
    assert ours - {package(module)} <= BELOW.get(package(module), set())


def test_nothing_but_the_command_line_knows_the_command_line() -> None:
    upward = {
        module
        for module, targets in arrows().items()
        if room(module) != "qwen3guard_apps.cli" and any(room(each) == "qwen3guard_apps.cli" for each in targets)
    }
    assert not upward


def test_there_is_no_circle_of_files_and_none_of_folders() -> None:
    files = arrows()
    assert not circle(files)
    folders: dict[str, set[str]] = {}
    for module, targets in files.items():
        folders.setdefault(room(module), set()).update({room(each) for each in targets} - {room(module)})
    assert not circle(folders)
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c"]


def test_the_contract_needs_numpy_alone() -> None:
    import sys

    for module, path in MODULES.items():
        if package(module) == "contract":
            others = {name.partition(".")[0] for name in imported(path)} - {"qwen3guard_contract"}
            assert others <= LIGHT | sys.stdlib_module_names, module
    assert not (ROOT / "contract" / "qwen3guard_contract" / "__init__.py").read_text()


def test_one_module_knows_tritons_back_end() -> None:
    knows = {module for module, path in MODULES.items() if "triton_python_backend_utils" in set(imported(path))}
    assert knows == {"qwen3guard_runtime.triton.triton_io"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("model_repository/*/1/model.py")), ids=lambda path: path.parts[-3])
def test_a_model_is_thin_and_made_of_the_runtime(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40
    assert {package(name) for name in imported(path)} <= {"contract", "runtime"}


SYNC = {
    "qwen3guard_client.client": "qwen3guard_client.aio",
    "qwen3guard_client.stream.stream": "qwen3guard_client.stream.aio",
    "qwen3guard_client.moderation.moderation": "qwen3guard_client.moderation.aio",
    "qwen3guard_client.transport.threads": "qwen3guard_client.transport.tasks",
}
"""Sync modules and their async twins: what both have is one name."""
CONVENTIONS = {"main", "add_arguments", "run", "T"}
"""What several modules have under one name by convention: entry points, and a type variable."""


def public_names(path: Path) -> Iterator[str]:
    """What a module defines without an underscore before it."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


def test_a_public_name_has_one_owner() -> None:
    owners: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        for name in public_names(path):
            owners.setdefault(name, set()).add(SYNC.get(module, module))
    assert {name: modules for name, modules in owners.items() if len(modules) > 1 and name not in CONVENTIONS} == {}
