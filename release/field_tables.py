"""Writes the tables of fields in docs/proxy.md from the proxy's allow-list. With --check, writes nothing and fails if
they differ.

    python release/field_tables.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from qwen3guard_apps.doors.anthropic_request import ANTHROPIC_MESSAGE_FIELDS, BLOCK_FIELDS, MESSAGES_REQUEST_FIELDS
from qwen3guard_apps.doors.completions import COMPLETIONS_REQUEST_FIELDS
from qwen3guard_apps.doors.responses_request import ITEM_FIELDS, RESPONSES_REQUEST_FIELDS
from qwen3guard_apps.openai import fields
from qwen3guard_apps.openai.shapes import Shape

PAGE = Path(__file__).parents[1] / "docs" / "proxy.md"
BEGIN = "<!-- Written by release/field_tables.py from apps/qwen3guard_apps/openai/fields.py and doors/. -->"
END = "<!-- The end of what release/field_tables.py writes. -->"
TABLES = {
    "Of an answer, or of a chunk": fields.ANSWER_FIELDS,
    "Of its usage": fields.USAGE_FIELDS,
    "Of details of the usage": fields.USAGE_DETAILS_FIELDS,
    "Of a choice": fields.CHOICE_FIELDS,
    "Of a message, or of a delta": fields.MESSAGE_FIELDS,
    "Of a part, where a text comes in parts": fields.PART_OF_CONTENT_FIELDS,
    "Of a tool call": fields.TOOL_CALL_FIELDS,
    "Of a function": fields.FUNCTION_FIELDS,
    "Of a custom tool": fields.CUSTOM_FIELDS,
    "Of a request": fields.REQUEST_FIELDS,
    "Of a message of a request": fields.REQUEST_MESSAGE_FIELDS,
    "Of a model in the list of models": fields.MODEL_FIELDS,
    "Of a request for a text completion": COMPLETIONS_REQUEST_FIELDS,
    "Of a request for Anthropic's messages": MESSAGES_REQUEST_FIELDS,
    "Of a message of it": ANTHROPIC_MESSAGE_FIELDS,
    **{f"Of a block `{kind}` of its content": table for kind, table in BLOCK_FIELDS.items()},
    "Of a request for a response": RESPONSES_REQUEST_FIELDS,
    **{f"Of an item `{kind}` of its input": table for kind, table in ITEM_FIELDS.items()},
}
OF_REQUESTS = ("Of a request", "Of a message of a request")
"""How the titles of the tables begin that let other fields pass as OTHERS says."""


def tables() -> str:
    return "\n\n".join(_table(title, table) for title, table in TABLES.items())


def _table(title: str, table: fields.Table) -> str:
    rows = [f"| {title} | what becomes of it | what passes |", "|---|---|---|"]
    for names, shape in _grouped(table):
        rows.append(f"| {', '.join(f'`{name}`' for name in names)} | {shape.becomes} | {shape.says} |")
    if title.startswith(OF_REQUESTS):
        rows.append(f"| any other field | {fields.OTHERS.becomes} | {fields.OTHERS.says} |")
    else:
        rows.append("| any other field | removed | |")
    return "\n".join(rows)


def _grouped(table: fields.Table) -> Iterator[tuple[list[str], Shape]]:
    """Neighbours of the same shape in one row."""
    names: list[str] = []
    last: Shape | None = None
    for name, shape in table.items():
        if last is not None and shape != last:
            yield names, last
            names = []
        names.append(name)
        last = shape
    if last is not None:
        yield names, last


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tables of fields in docs/proxy.md.")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if they differ")
    written = PAGE.read_text(encoding="utf-8")
    before, _, rest = written.partition(BEGIN)
    _, _, after = rest.partition(END)
    page = f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"
    if not parser.parse_args().check:
        PAGE.write_text(page, encoding="utf-8")
    elif page != written:
        sys.exit("docs/proxy.md differs from the allow-list: run python release/field_tables.py")


if __name__ == "__main__":
    main()
