"""What is said in more than one file and must be the same there: the version, the address, the Pythons."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from qwen3guard_apps.cli.main import main
from qwen3guard_contract import errors, extras
from qwen3guard_server import installation
from support.places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = PROJECT["version"]
REPEATED = {
    "deploy/Dockerfile": r"qwen3guard-triton:(\S+)",
    "deploy/README.md": r"qwen3guard-triton:([\d.]+)",
    "deploy/compose.yaml": r"qwen3guard-triton:(\S+)",
    "deploy/helm/Chart.yaml": r"ersion: ([\d.]+)\n",
    "deploy/helm/values-gpu.yaml": r"tag: ([\d.]+)-gpu",
    "CHANGELOG.md": r"\A# Changelog\n(?:[^#].*\n|\n)*## \[?([\d.]+)",
}
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


@pytest.mark.parametrize("file", REPEATED)
def test_the_version_is_that_of_pyproject(file: str) -> None:
    found = re.findall(REPEATED[file], (ROOT / file).read_text(encoding="utf-8"))
    assert found, f"{file} names no version"
    assert set(found) == {VERSION}, f"pyproject.toml has version {VERSION}, {file} has {found}"


def test_what_is_installed_here_has_the_version() -> None:
    installed = importlib.metadata.version("qwen3guard-triton")
    assert installed == VERSION, (
        f"pyproject.toml has version {VERSION}, .venv has {installed}: run make .venv/serve.done"
    )


def test_the_command_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"qwen3guard {VERSION}\n"


def test_the_address_to_clone_is_that_of_pyproject() -> None:
    repository = PROJECT["urls"]["Repository"]
    assert all(url.startswith(repository) for url in PROJECT["urls"].values())
    assert re.findall(r"git clone (\S+)", (ROOT / "README.md").read_text(encoding="utf-8")) == [repository]
    pages = [ROOT / "mkdocs.yml", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]
    assert [page.name for page in pages if repository in page.read_text(encoding="utf-8")] == []


def test_the_client_is_for_every_python_and_the_embedded_server_for_what_its_wheel_takes() -> None:
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0") for python in PYTHONS)
    named = [each.rpartition(":: ")[2] for each in PROJECT["classifiers"] if "Python" in each]
    assert named == PYTHONS
    assert not any(Requirement(each).marker for each in PROJECT["dependencies"])
    (wheel,) = (each for each in map(Requirement, PROJECT["optional-dependencies"]["serve"]) if "pytriton" in each.name)
    assert wheel.marker
    takes = [python for python in PYTHONS if wheel.marker.evaluate({"python_version": python})]
    assert takes == [f"{major}.{minor}" for major, minor in installation.PYTHONS]


def test_the_extra_for_gpus_is_serve_with_another_onnx_runtime() -> None:
    """One environment cannot have both: they are one folder, and the one that is installed last wins."""
    extras = {
        name: {
            requirement.name: requirement for requirement in map(Requirement, PROJECT["optional-dependencies"][name])
        }
        for name in ("serve", "gpu")
    }
    assert set(extras["serve"]) - {"onnxruntime"} == set(extras["gpu"]) - {"onnxruntime-gpu", "cuda-bindings"}
    assert extras["gpu"]["onnxruntime-gpu"].extras == {"cuda", "cudnn"}
    for name in ("nvidia-pytriton", "tokenizers", "jinja2"):
        assert str(extras["gpu"][name]) == str(extras["serve"][name])
    conflicts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["conflicts"]
    against = {each["extra"] for pair in conflicts for each in pair} - {"gpu"}
    assert against >= {"serve", "export", "dev"}


@pytest.mark.parametrize(
    ("python", "error", "words"),
    [
        ((3, 12), errors.ServeError, r"jinja2 is not installed: \S+ -m pip install --editable '\S+\[serve\]'"),
        ((3, 13), errors.UnsupportedPython, "needs Python 3.11 or 3.12, and this is 3.13"),
        ((3, 14), errors.UnsupportedPython, "needs Python 3.11 or 3.12, and this is 3.14"),
    ],
)
def test_no_python_is_told_to_install_what_does_not_install_there(
    monkeypatch: pytest.MonkeyPatch, python: tuple[int, int], error: type[errors.ServeError], words: str
) -> None:
    monkeypatch.setattr(installation, "_python", lambda: python)
    said = installation.not_installed("jinja2")
    assert type(said) is error
    assert re.search(words, str(said))
    assert ("pip install" in str(said)) == (error is errors.ServeError)


def test_serve_says_what_is_missing_before_it_asks_for_a_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(["serve", "--model-repository", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("qwen3guard: The embedded server is not installed: ")


def test_everybody_installs_what_can_be_had() -> None:
    """The project is on no index, and each extra that a page or a message names exists."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in listed if name.endswith((".md", ".py"))}
    from_index = re.compile(r"pip3? install[^`\n]*['\" ]qwen3guard-triton")
    assert [name for name, text in texts.items() if from_index.search(text)] == []
    named = [re.findall(r"pip install[^`\n]*'\.\[([\w,]+)\]'", text) for text in texts.values()]
    named += [re.findall(r"how_to_install\(['\"]([\w', ]+)['\"]\)", text) for text in texts.values()]
    assert {*re.findall(r"\w+", str(named))} <= PROJECT["optional-dependencies"].keys()
    assert sum(map(len, named)) > 15


@pytest.mark.parametrize(
    ("noted", "command"),
    [
        ('{"url": "file:///tmp/a%20b/q-1.whl", "archive_info": {}}', "'/tmp/a b/q-1.whl[apps,data]'"),
        ('{"url": "file:///tmp/clone", "dir_info": {}}', "'/tmp/clone[apps,data]'"),
        (
            '{"url": "https://git.example/q", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
            "'qwen3guard-triton[apps,data] @ git+https://git.example/q@abc'",
        ),
        (None, "'qwen3guard-triton[apps,data]'"),
    ],
)
def test_an_extra_comes_from_where_the_project_came_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, noted: str | None, command: str
) -> None:
    assert extras.how_to_install("apps").endswith(f" --editable '{ROOT}[apps]'")
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "qwen3guard_contract" / "extras.py"))
    installed = SimpleNamespace(read_text=lambda _: noted)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: installed)
    assert extras.how_to_install("apps", "data") == f"{sys.executable} -m pip install {command}"
