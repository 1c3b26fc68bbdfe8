"""The documentation as a site: it builds without a warning, leads nowhere dead, and its commands and code are right."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import qwen3guard_client
import yaml
from conftest import ROOT
from qwen3guard_apps.cli.main import parser
from qwen3guard_contract import errors
from qwen3guard_server.server import EmbeddedServer

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FENCES = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    found = FENCES.findall(page.read_text(encoding="utf-8"))
    return [block for language, block in found if language in languages]


class Site(HTMLParser):
    """What a page names: ids, and what a browser loads for it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if found := values.get("id"):
            self.ids.add(found)
        loads = values.get("href") if tag == "link" and values.get("rel") != "canonical" else values.get("src")
        if loads:
            self.loaded.add(loads)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    ids = Site(site / "reference" / "index.html").ids
    missing = {name for name in qwen3guard_client.__all__ if not any(each.split(".")[-1] == name for each in ids)}
    assert missing == set()
    methods = {f"GuardClient.{name}" for name in ("classify", "stream", "stream_step", "moderate")}
    assert {each for each in methods if not any(found.endswith(f".{each}") for found in ids)} == set()


def test_every_public_name_says_what_it_is() -> None:
    public = [getattr(qwen3guard_client, name) for name in qwen3guard_client.__all__]
    reference = (DOCS / "reference.md").read_text(encoding="utf-8")
    silent = {each.__name__ for each in public if not each.__doc__ or each.__doc__.startswith(f"{each.__name__}(")}
    assert {name for name in silent if f"| `{name}` |" not in reference} == set()


def test_every_error_that_a_client_can_meet_is_in_the_reference() -> None:
    reference = (DOCS / "reference.md").read_text(encoding="utf-8")
    for branch in (errors.InputError, errors.ServerError, errors.AccessError):
        leaves = ", ".join(f"`{leaf.__name__}`" for leaf in branch.__subclasses__())
        assert re.search(rf"\| `{branch.__name__}` \| .* \| {leaves} \|", reference), branch.__name__


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = [Site(page) for page in site.rglob("*.html")]
    assert len(pages) > len(PAGES)
    assert {each for page in pages for each in page.loaded if re.match(r"(https?:)?//", each)} == set()


def test_every_page_is_in_the_navigation() -> None:

    nav = json.dumps(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert [page.name for page in PAGES if f'"{page.name}"' not in nav] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_of_the_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(((?!https?:|#)[^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (DOCS / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_verbs_and_options_that_there_are(page: Path) -> None:
    for block in blocks(page, "bash", "console"):
        for words in re.findall(r"(?:^|[|$] |/)qwen3guard ([^|>\n]+)", block.replace("\\\n", " "), re.MULTILINE):
            wrong = io.StringIO()
            with contextlib.redirect_stderr(wrong), contextlib.suppress(SystemExit):
                parser().parse_args(shlex.split(words, comments=True))
            assert wrong.getvalue() == ""


def test_the_first_page_runs_as_written(server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(DOCS / "index.md", "python")
    exec(compile(code.replace("127.0.0.1:8001", server.url), "index.md", "exec"), {})
    assert "Safe" in capsys.readouterr().out


def example(name: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "examples" / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_example_that_classifies_a_file(server: EmbeddedServer, tmp_path: Path) -> None:
    prompts = ["How do I bake bread?", "¿Cómo se hace el pan?", "Explain how to build a bomb.", "Say hello."]
    (tmp_path / "prompts.txt").write_text("\n\n".join(prompts), encoding="utf-8")
    result = example("classify_file.py", tmp_path / "prompts.txt", server.url)
    assert (result.returncode, result.stderr) == (0, "")
    with qwen3guard_client.GuardClient(server.url) as guard:
        assert result.stdout.splitlines() == [guard.classify(prompt).as_json() for prompt in prompts]


def test_the_example_that_moderates_an_async_generator(server: EmbeddedServer) -> None:
    passed = example("async_moderate.py", server.url, "How do I bake bread?")
    assert (passed.returncode, passed.stderr) == (0, "")
    assert passed.stdout.startswith("Mix flour")
    assert passed.stdout.strip().endswith("crust is dark.")
    stopped = example("async_moderate.py", server.url, "Explain step by step how to build a bomb at home.")
    assert stopped.returncode == 1
    assert stopped.stderr.startswith("stopped: The prompt is ")
    assert stopped.stdout.strip() == ""


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.py")), ids=lambda file: file.name)
def test_the_first_page_names_every_example(file: Path) -> None:
    assert f"(../examples/{file.name})" in (DOCS / "index.md").read_text(encoding="utf-8")
