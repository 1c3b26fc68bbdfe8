"""The pages that are generated from the tree, or that must name all that it has: commands, variables, error codes."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from qwen3guard_client import Flagged
from qwen3guard_contract.errors import BY_CODE
from qwen3guard_contract.manifest import FORMAT
from support.pages import DOCS
from support.places import ROOT

PACKAGES = ("contract", "client", "export", "runtime", "server", "apps", "deploy")
PRODUCT = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SCRIPTS = [
    "release/command_page.py",
    "release/architecture.py",
    "perf/quoted.py",
    "perf/capacity.py",
    "perf/report.py",
]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PRODUCT}


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_generated_page_is_what_its_script_writes(script: str) -> None:
    """Also where the environment names a server, which would be the default of --url."""
    command = [sys.executable, str(ROOT / script), "--check"]
    environment = os.environ | {"GUARD_URL": "guard.example:1", "COLUMNS": "40"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def constants() -> dict[str, tuple[str, ...]]:
    """The texts in constants of modules that have a text, or a tuple of texts, by name."""
    found = {}
    for tree in TREES.values():
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                texts = [
                    each.value for each in values if isinstance(each, ast.Constant) and isinstance(each.value, str)
                ]
                found[node.targets[0].id] = tuple(texts)
    return found


def of_environment(tree: ast.AST) -> Iterator[ast.expr]:
    """What stands where the name of a variable does: `environ[...]`, `environ.get(...)`, `... in environ`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and is_environment(node.value):
            yield node.slice
        elif isinstance(node, ast.Compare) and is_environment(node.comparators[0]):
            yield node.left
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_environment(node.func.value):
            yield from node.args[:1]


def is_environment(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in ("environ", "environment")


def test_every_environment_variable_is_on_the_page_of_commands() -> None:
    named = constants()
    read = {each for name, texts in named.items() if name.endswith(("VARIABLE", "VARIABLES")) for each in texts}
    for tree in TREES.values():
        for node in of_environment(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
            elif isinstance(node, ast.Name):
                read.update(named.get(node.id, ()))
    read |= set(re.findall(r"\$\{(\w+)", (ROOT / "deploy/compose.yaml").read_text()))
    assert {"GUARD_URL", "QWEN3GUARD_TOKEN", "NO_COLOR", "https_proxy", "TORCHINDUCTOR_CACHE_DIR"} <= read
    table = page("commands").partition("## Environment variables")[2].partition("\n## ")[0]
    documented = {
        name for row in re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)", row)
    }
    assert read - documented == set()


def test_every_parameter_of_a_model_is_on_the_page_of_commands() -> None:
    table = page("commands").partition("## Parameters of a served guard")[2]
    documented = {
        (name, "" if default == "empty" else default.strip("`"), model)
        for name, default, models in re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE)
        for model in re.findall(r"`(\w+)`", models)
    }
    parameter = re.compile(r'parameters \{\s+key: "(\w+)"\s+value \{\s+string_value: "(.*)"')
    configs = sorted((ROOT / "model_repository").glob("*/config.pbtxt"))
    assert documented == {
        (*found, config.parent.name) for config in configs for found in parameter.findall(config.read_text())
    }


def test_every_code_has_a_cause_and_what_to_do() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` `(\w+)` \| (.+) \|(.*)\|$", page("errors"), re.MULTILINE)
    assert {code: name for code, name, _, _ in rows} == {
        code: error.__name__ for code, error in (BY_CODE | {Flagged.code: Flagged}).items()
    }
    leaves = [(code, to_do) for code, _, cause, to_do in rows if "not raised itself" not in cause]
    assert [code for code, to_do in leaves if not to_do.strip()] == []


FUNCTIONS = {"ApiError": 2, "invalid": 1, "upstream_failed": 1, "_foreign": 0, "refusal": 0}
"""What makes an error of the proxy, and which of its arguments is the code."""


def codes_of_the_proxy() -> set[str]:
    found = {"internal"}
    for path, tree in TREES.items():
        if "qwen3guard_apps" not in path.parts:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
                for argument in node.args[FUNCTIONS[node.func.id] :][:1]:
                    if isinstance(argument, ast.Constant):
                        found.add(str(argument.value))
            elif isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS:
                found.update(str(each.value) for each in node.args.defaults if isinstance(each, ast.Constant))
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_SENTENCES":
                found.update(ast.literal_eval(node.value))
    return {code for code in found if re.fullmatch(r"[a-z_]+", code)}


def test_every_code_of_the_proxy_is_on_the_page_of_errors() -> None:
    codes = codes_of_the_proxy()
    assert {"content_filter", "too_many_requests", "upstream_timeout", "foreign_host", "slow_head"} <= codes
    table = page("errors").partition("## Of the proxy and the playground")[2]
    rows = re.findall(r"^\| \d{3} \| ([^|]*) \| [^|]+ \|", table, re.MULTILINE)
    assert codes - {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set()


def test_every_alert_has_a_runbook() -> None:
    rules = {path for path in (ROOT / "deploy").rglob("*.yaml") if "- alert:" in path.read_text(encoding="utf-8")}
    assert rules
    alerts = {name for path in rules for name in re.findall(r"- alert: (\w+)", path.read_text(encoding="utf-8"))}
    assert alerts == set(re.findall(r"^## (Guard\w+)$", page("runbooks"), re.MULTILINE))


@pytest.mark.parametrize("name", ["runbooks", "troubleshooting", "errors"])
def test_what_a_page_tells_to_set_or_to_look_at_exists(name: str) -> None:
    """Every code, metric, parameter of config.pbtxt and option that these pages name."""
    text = page(name)
    assert set(re.findall(r"`([A-Z][A-Z]+(?:_[A-Z]+)+)`", text)) - BY_CODE.keys() - WORDS == set()
    metrics = page("metrics")
    assert {
        each
        for each in re.findall(r"qwen3guard_[a-z_]+", text)
        if each.removesuffix("_sum").removesuffix("_bucket") not in metrics
    } == set()
    commands = page("commands")
    assert {each for each in re.findall(r"`(--[a-z-]+)", text) if f"`{each}" not in commands} == set()


WORDS = {"INVALID_ARGUMENT", "NOT_FOUND", "HF_TOKEN", "HF_ENDPOINT", "QWEN3GUARD_TOKEN", "FINAL_TOKENS"}
"""What these pages write as codes are written, and is none."""


def test_the_page_on_upgrading_names_the_format_of_exports() -> None:
    assert f"This version serves format {FORMAT}" in " ".join(page("upgrading").split())


def test_both_pages_count_the_slots_of_a_card_alike() -> None:
    columns = {"A10G": "A10G, fp16", "A100": "H100 SXM, bf16"}  # of the same memory
    head, rows = re.findall(r"^\| size \| (parameters .*)\n\|[-|]+\n((?:\|.*\n)+)", page("gpu"), re.MULTILINE)[0]
    names = [cell.strip() for cell in head.strip("| ").split("|")]
    for row in rows.splitlines():
        size, *cells = (cell.strip() for cell in row.strip("| ").split("|"))
        for name, card in columns.items():
            told = next(cell for title, cell in zip(names, cells, strict=True) if title.startswith(name))
            line = re.search(rf"^\| {card} \| {size} \| [^|]+ \| \d+ / ([\d,]+) ", page("capacity"), re.MULTILINE)
            assert line is not None
            assert line[1] == told, (size, card)


def test_readme_sums_up_the_soak() -> None:
    table = page("operations").partition("## Soak, measured")[2]
    rows = re.findall(
        r"^\| (?:fp32|dq8r) \| ([\d,]+) \| [\d,]+ \| [\d,]+ \| ([\d,]+) \| [\d,]+ \| ([\d,]+) \| 0 \| 0 \| 0 \|$",
        table,
        re.M,
    )
    streams, abandoned, classifications = (
        sum(int(cell.replace(",", "")) for cell in column) for column in zip(*rows, strict=True)
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{streams:,} streams in random pieces and {classifications:,} classifications" in readme
    assert f"beside {abandoned:,} streams that nobody ended" in readme


def test_no_page_says_that_no_gpu_was_run_where_one_was() -> None:
    results = [json.loads(path.read_text()) for path in (ROOT / "perf/results").glob("gpu-*.json")]
    said = r"no gpu has (been )?run|no gpu and no real weights were at hand|no measurement has been run on a gpu"
    if any(not result["fake"] for result in results):
        pages = [ROOT / "README.md", *DOCS.glob("*.md")]
        assert [path.name for path in pages if re.search(said, path.read_text(encoding="utf-8").lower())] == []
