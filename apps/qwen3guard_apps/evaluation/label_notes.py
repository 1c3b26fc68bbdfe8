"""What an evaluation tells about its labels: what it could not read, what it read as something else, and what looks
wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen3guard_contract.errors import GuardError, InvalidRequest

from qwen3guard_apps.annotation.rows import DataRow, Rows
from qwen3guard_apps.evaluation.label_words import category_of, names_what_is_safe
from qwen3guard_apps.evaluation.labels import LabelFields

MOST_SAID = 10
"""So many rows that are left out are named one by one, and so many values of each kind."""
LABEL_CHARACTERS = 40


@dataclass
class LabelNotes:
    """Counts what the labels of rows are, while `labelled` reads them."""

    labels: LabelFields
    rows: int = 0
    left_out: int = 0
    unsafe: int = 0
    unknown_labels: Counter[str] = field(default_factory=Counter)
    unknown_categories: Counter[str] = field(default_factory=Counter)
    category_aliases: dict[str, str] = field(default_factory=dict)
    inverted: dict[str, None] = field(default_factory=dict)
    contradicted: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many rows another field labels otherwise than the one that is read, by both names."""

    def labelled(self, rows: Rows) -> Iterator[tuple[DataRow, str]]:
        """Yields each row with what is wrong with its label, or with "" where it can be read."""
        for row in rows.read():
            self.rows += 1
            try:
                self._read(row)
            except GuardError as error:
                self.left_out += 1
                yield row, str(error)
            else:
                yield row, ""

    def _read(self, row: DataRow) -> None:
        record = row.record
        if record is None:
            raise row.error or InvalidRequest("The row could not be read.")
        name, value = self.labels.found(record)
        try:
            self.unsafe += self.labels.unsafe(record)
        except InvalidRequest:
            self.unknown_labels["(none)" if value is None else str(value)[:LABEL_CHARACTERS]] += 1
            raise
        if names_what_is_safe(name):
            self.inverted[name] = None
        if other := self.labels.contradicting(record):
            self.contradicted[name, other] += 1
        for spelled in self.labels.category_names(record):
            known = category_of(spelled)
            if known is None:
                self.unknown_categories[spelled[:LABEL_CHARACTERS]] += 1
            elif known.value != spelled:
                self.category_aliases[spelled] = known.value

    def as_dict(self) -> dict[str, Any]:
        return {
            "unknown_labels": dict(self.unknown_labels.most_common()),
            "unknown_categories": dict(self.unknown_categories.most_common()),
            "category_aliases": self.category_aliases,
            "inverted_fields": list(self.inverted),
        }

    def sentences(self) -> Iterator[str]:
        """What is told, one sentence each."""
        for name in self.inverted:
            yield f"The field {name!r} says what is safe, so true there counts as safe."
        for (name, other), count in self.contradicted.items():
            yield f"{count:,} rows are labelled by {name!r}, and {other!r} says the opposite: choose by --label-field."
        if self.unknown_labels:
            yield f"{self.left_out:,} rows are left out; labels that are not known: {_counted(self.unknown_labels)}."
        read = self.rows - self.left_out
        if read and self.unsafe in (0, read):
            yield f"Every row that is left is labelled {'unsafe' if self.unsafe else 'safe'}."
        if self.category_aliases:
            pairs = [f"{name!r} as {known}" for name, known in list(self.category_aliases.items())[:MOST_SAID]]
            more = " ..." if len(self.category_aliases) > MOST_SAID else ""
            yield f"Categories are read so: {', '.join(pairs)}{more}."
        if self.unknown_categories:
            yield f"Categories that the guard does not have: {_counted(self.unknown_categories)}."


def _counted(counts: Counter[str]) -> str:
    shown = [f"{name!r} ({count:,})" for name, count in counts.most_common(MOST_SAID)]
    return ", ".join(shown) + (" ..." if len(counts) > MOST_SAID else "")


def looks_inverted(figures: dict[str, Any], fields: Sequence[str]) -> str:
    """A sentence where the guard's scores go against the labels, or ""."""
    area = figures.get("curves", {}).get("1 - P(Safe)", {}).get("area", {}).get("value")
    if area is None or area >= 0.5:
        return ""
    return (
        f"The labels look inverted: the guard finds rows labelled safe riskier than those labelled unsafe (area under"
        f" the ROC {area:.3f}, and 0.5 is chance). See what true or 1 means in {', '.join(map(repr, fields))}."
    )
