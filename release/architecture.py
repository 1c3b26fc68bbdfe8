"""Draws the pictures of docs/architecture.md: a request's way through the files that README names, and who knows whom
among the packages, by their imports. With --check, draws nothing and fails if they differ.

    python release/architecture.py [--check]
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
WAYS = {
    "classify": (
        "the client asks",
        "Triton hands it over",
        "text becomes tokens",
        "the loop of Gen",
        "a pass of the graph",
        "the answer is read",
        "the client's result",
    ),
    "stream_step": (
        "the client keeps the text",
        "Triton hands it over",
        "which tokens are final",
        "the loop of Stream",
        "levels and flags",
    ),
}
"""What each step of README's life of a request is, for the request of that name."""
LAYERS = (("apps",), ("server", "", ""), ("client", "export", "runtime"), ("contract",))
"""The packages from the top, with places that are left free; nobody knows one beside it, or above it."""
WIDTH, GAP, LINE, TITLE = 460, 14, 15, 18
STYLE = """<style>
text{font:12px system-ui,sans-serif;fill:#1f2937} .m{font:11px ui-monospace,monospace} .t{font-weight:600}
rect{fill:#f0f7f6;stroke:#0f766e;rx:5px} .k rect{fill:#0f766e} .k text{fill:#fff} path{stroke:#475569;fill:none}
marker path{fill:#475569;stroke:none}
@media (prefers-color-scheme:dark){text{fill:#e5e7eb} rect{fill:#1f2d2e;stroke:#5eead4} .k rect{fill:#115e59}
path{stroke:#cbd5e1} marker path{fill:#cbd5e1}}
</style><defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 8 4 0 8z"/></marker></defs>"""


class Place(NamedTuple):
    left: float
    top: float
    width: float
    height: float


def steps(readme: str) -> Iterator[list[list[str]]]:
    """The files of each step, for each of the two lists in README's life of a request."""
    section = readme.partition("## The life of a request\n")[2].partition("\n[admission.py]:")[0]
    for block in re.findall(r"(?:^\d\. .*\n(?:   .*\n?)*)+", section, re.MULTILINE):
        yield [re.findall(r"\[([\w./]+)\]", step) for step in re.split(r"^\d\. ", block, flags=re.MULTILINE)[1:]]


def request(readme: str) -> str:
    """The way of both requests, side by side."""
    half, parts, bottom = (WIDTH - GAP) / 2, [], 0.0
    for column, ((name, titles), way) in enumerate(zip(WAYS.items(), steps(readme), strict=True)):
        if len(titles) != len(way):
            sys.exit(
                f"README's life of {name} has {len(way)} steps, and release/architecture.py titles for {len(titles)}."
            )
        left, top = column * (half + GAP), 0.0
        boxes = [(name, [], "k")]
        boxes += [
            (f"{number}. {title}", lines(files), "")
            for number, (title, files) in enumerate(zip(titles, way, strict=True), 1)
        ]
        for place, (title, written, kind) in enumerate(boxes):
            if place:
                parts.append(arrow(left + half / 2, top - GAP, left + half / 2, top))
            height = TITLE + 8 + LINE * len(written)
            parts.append(box(Place(left, top, half, height), title, written, kind))
            top += height + GAP
        bottom = max(bottom, top)
    return svg(bottom - GAP, parts, "The files that a request runs through, step by step")


def lines(files: Sequence[str]) -> list[str]:
    return textwrap.wrap("  ".join(file.replace(" ", "") for file in files), 30, break_on_hyphens=False)


def packages() -> str:
    """The packages in their layers, with an arrow to each that one imports, unless another of these imports it too."""
    knows = {name: imports(name) for layer in LAYERS for name in layer if name}
    parts, places, top = [], {}, 0.0
    for layer in LAYERS:
        width = (WIDTH - GAP * (len(layer) - 1)) / len(layer)
        rooms = {name: textwrap.wrap("  ".join(rooms_of(name)), int(width / 7)) for name in layer if name}
        height = TITLE + 8 + LINE * max(map(len, rooms.values()))
        for number, name in ((number, name) for number, name in enumerate(layer) if name):
            left = number * (width + GAP)
            places[name] = Place(left, top, width, height)
            parts.append(box(places[name], name, rooms[name]))
        top += height + 3 * GAP
    for name, known in knows.items():
        for other in sorted(known - {each for between in known for each in knows[between]}):
            parts.append(link(places[name], places[other]))
    return svg(top - 3 * GAP, parts, "The packages, and which of them import which")


def link(upper: Place, lower: Place) -> str:
    """An arrow from a box to one that is lower, in the middle of what is narrower."""
    narrow = min(upper, lower, key=lambda place: place.width)
    middle = narrow.left + narrow.width / 2
    return arrow(middle, upper.top + upper.height, middle, lower.top)


def rooms_of(name: str) -> list[str]:
    """The package's folders, and where it has none its modules."""
    folder = ROOT / name / f"qwen3guard_{name}"
    rooms = sorted(f"{each.name}/" for each in folder.iterdir() if (each / "__init__.py").is_file())
    return rooms or sorted(each.stem for each in folder.glob("*.py") if each.stem != "__init__")


def imports(name: str) -> set[str]:
    """The packages of ours that the package `name` imports."""
    found = set()
    for path in (ROOT / name / f"qwen3guard_{name}").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found.update(match[1] for module in modules if (match := re.match(r"qwen3guard_(\w+)", module)))
    return found - {name}


def box(place: Place, title: str, written: Sequence[str], kind: str = "") -> str:
    left, top, width, height = place
    x, y = left + 8, top + TITLE
    rows = "".join(
        f'<text class="m" x="{x:g}" y="{y + LINE * row:g}" xml:space="preserve">{escape(line)}</text>'
        for row, line in enumerate(written, 1)
    )
    rect = f'<rect x="{left + 0.5:g}" y="{top + 0.5:g}" width="{width - 1:g}" height="{height - 1:g}"/>'
    return f'<g class="{kind}">{rect}<text class="t" x="{x:g}" y="{y:g}">{escape(title)}</text>{rows}</g>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:g} {y1:g} {x2:g} {y2:g}" marker-end="url(#a)"/>'


def svg(height: float, parts: Sequence[str], title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}">'
    )
    return "\n".join([head, f"<title>{title}</title>", STYLE, *parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/architecture.md.")
    parser.add_argument("--check", action="store_true", help="draw nothing, and fail if they differ")
    check = parser.parse_args().check
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, drawn in (("request", request(readme)), ("packages", packages())):
        path = IMAGES / f"architecture-{name}.svg"
        if not check:
            path.write_text(drawn, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != drawn:
            sys.exit(f"docs/images/{path.name} differs from the tree: run python release/architecture.py")


if __name__ == "__main__":
    main()
