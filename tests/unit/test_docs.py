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

import pytest
import qwen3guard_client
import yaml
from qwen3guard_apps.cli.main import parser
from qwen3guard_contract import errors, labels, wire
from support.pages import DOCS, blocks
from support.places import ROOT

PAGES = sorted(DOCS.glob("*.md"))


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


def below(branch: type[errors.GuardError]) -> list[type[errors.GuardError]]:
    return [each for each in branch.__subclasses__() if each.__module__.startswith("qwen3guard_")]


def test_every_error_is_in_the_reference() -> None:
    reference = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert qwen3guard_client.Flagged in below(errors.GuardError)
    for branch in below(errors.GuardError):
        leaves = ", ".join(f"`{leaf.__name__}`" for leaf in below(branch))
        assert re.search(rf"\| `{branch.__name__}` \| .* \| {leaves} ?\|", reference), branch.__name__


def test_operations_say_what_to_do_about_every_error() -> None:
    table = (DOCS / "operations.md").read_text(encoding="utf-8").partition("\n| error |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)`( and below)? \|", table, re.MULTILINE))
    for branch in below(errors.GuardError):
        if not rows.get(branch.__name__):
            assert [each.__name__ for each in below(branch) or [branch] if each.__name__ not in rows] == []


def test_clients_elsewhere_read_each_tensor_and_the_orders_of_labels() -> None:
    page = (DOCS / "classify.md").read_text(encoding="utf-8")
    streams = (DOCS / "streams.md").read_text(encoding="utf-8")
    for model, text in ((wire.CLASSIFY, page), (wire.STREAM_STEP, streams)):
        assert [each.name for each in (*model.inputs, *model.outputs) if f"`{each.name}`" not in text] == []
    table = page.partition("| array | labels |")[2].partition("\n\n")[0]
    rows = [row.split(" | ")[1].removesuffix(" |") for row in table.strip().splitlines()[1:]]
    assert rows == [
        ", ".join(level.value for level in labels.RISK_ORDER),
        ", ".join(category.value for category in labels.QUERY_CATEGORY_ORDER),
        "the same without Jailbreak",
        "those of a prompt, then None",
        ", ".join(refusal.value for refusal in labels.REFUSAL_ORDER),
    ]
    assert (*labels.RESPONSE_CATEGORY_ORDER, labels.Category.JAILBREAK) == labels.QUERY_CATEGORY_ORDER
    assert (*labels.QUERY_CATEGORY_ORDER, None) == labels.CATEGORY_ORDER


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
def test_commands_have_the_verbs_and_options_that_there_are(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of TOML is the file that its first line names, for --config."""
    monkeypatch.chdir(tmp_path)
    for text in blocks(page, "toml"):
        Path(text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
    for block in blocks(page, "bash", "console"):
        for words in re.findall(r"(?:^|[|$] |/)qwen3guard ([^|>\n]+)", block.replace("\\\n", " "), re.MULTILINE):
            wrong = io.StringIO()
            with contextlib.redirect_stderr(wrong), contextlib.suppress(SystemExit):
                parser().parse_args(shlex.split(words, comments=True))
            assert wrong.getvalue() == ""


@pytest.mark.parametrize(
    "name", ["node/main.mjs", "go/main.go", *(file.name for file in (ROOT / "examples").glob("*.py"))]
)
def test_the_first_page_names_every_example(name: str) -> None:
    assert f"(../examples/{name})" in (DOCS / "index.md").read_text(encoding="utf-8")
