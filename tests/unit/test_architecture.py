"""Who may import whom: README's rule, read from the sources. No arrow runs up, and there is no circle."""

from __future__ import annotations

import ast
import sys
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


OUTSIDE = {
    "runtime": {
        "numpy", "jinja2", "tokenizers", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda",
        "triton_python_backend_utils",
    },
}  # fmt: skip
"""What the processes of the models may load of others."""
NOT_IMPORTED = {"tests", "support", "perf", "trials", "demo", "examples", "deploy", "docs", "model_repository"}
"""Folders from which no package imports."""


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for folder in BELOW:
        for path in (ROOT / folder / f"qwen3guard_{folder}").rglob("*.py"):
            dotted = ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
            found[dotted.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """What a file imports anywhere in it, in functions and by name too, but not for type checkers alone."""
    return names_imported(path.read_text(), str(path))


def names_imported(source: str, path: str = "") -> Iterator[str]:
    tree = ast.parse(source)
    from_typing = any(
        isinstance(node, ast.ImportFrom) and node.module == "typing" and "TYPE_CHECKING" in {a.name for a in node.names}
        for node in tree.body
    ) and not any(
        isinstance(node, ast.Name) and node.id == "TYPE_CHECKING" and isinstance(node.ctx, ast.Store)
        for node in ast.walk(tree)
    )
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if from_typing and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant):
                yield str(first.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("exec", "eval"), f"{path} runs text as code"


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
    """A package of another name beside ours would be shipped too: pyproject finds all that these folders hold."""
    assert {package(module) for module in MODULES} == set(BELOW)
    beside = {str(path.parent.relative_to(ROOT)) for folder in BELOW for path in (ROOT / folder).glob("*/__init__.py")}
    assert beside == {f"{folder}/qwen3guard_{folder}" for folder in BELOW}
    nested = [path for folder in BELOW for path in (ROOT / folder).glob("*/**/qwen3guard_*") if path.is_dir()]
    assert not nested


def test_an_import_is_seen_however_it_is_written() -> None:
    written = """
        import a1 as x; import a2.b
        from a3 import c
        def f(): from a4 import d
        importlib.import_module("a5.e"); __import__("a6")
        if TYPE_CHECKING: from a7 import g
        else: from a8 import h
    """
    source = "\n".join(line.strip() for line in written.splitlines())
    seen = {name.partition(".")[0] for name in names_imported(source)}
    assert seen == {f"a{number}" for number in range(1, 9)}  # its TYPE_CHECKING is not typing's
    typed = {name.partition(".")[0] for name in names_imported("from typing import TYPE_CHECKING\n" + source)}
    assert typed == seen - {"a7"} | {"typing"}
    for hidden in ("from . import a", "exec('import a')"):
        with pytest.raises(AssertionError):
            list(names_imported(hidden))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_package_imports_what_only_the_checkout_has(module: str) -> None:
    names = {name.partition(".")[0] for name in imported(MODULES[module])}
    assert not names & NOT_IMPORTED
    if allowed := OUTSIDE.get(package(module)):
        assert {name for name in names if not name.startswith("qwen3guard_")} <= allowed | sys.stdlib_module_names


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
    for module, path in MODULES.items():
        if package(module) == "contract":
            others = {name.partition(".")[0] for name in imported(path)} - {"qwen3guard_contract"}
            asked_for = {"onnxruntime"} if module == "qwen3guard_contract.integer_products" else set()
            assert others <= LIGHT | asked_for | sys.stdlib_module_names, module
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
