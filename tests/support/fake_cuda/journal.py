"""What the CUDA runtime of this folder wrote down, by the part of a program that it was done in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MARK = "mark"
QUEUED = ("kernel", "product", "copy", "set", "host-function", "replay")
"""The kinds of events that give a device work."""


@dataclass(frozen=True)
class Part:
    """The events of one part, in order: each has a kind and a detail."""

    events: list[tuple[str, str]] = field(default_factory=list)

    def of(self, kind: str) -> list[str]:
        return [detail for found, detail in self.events if found == kind]

    @property
    def queued(self) -> int:
        """The number of kernels, products, copies and memsets; those that are only recorded too."""
        return sum(kind in QUEUED for kind, _ in self.events)

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(kind for kind, _ in self.events))

    def copied(self, way: str) -> list[int]:
        """The bytes of each copy that went this way, such as device-to-host."""
        return [int(detail.split()[1]) for detail in self.of("copy") if detail.split()[0] == way]

    @property
    def allocated(self) -> int:
        """The bytes of device memory that were asked for."""
        return sum(map(int, self.of("allocate")))


def read(path: Path) -> dict[str, Part]:
    """Each part's events by its name, from its mark to the next."""
    parts: dict[str, Part] = {}
    part = Part()
    for kind, detail in _lines(path):
        if kind == MARK:
            part = parts.setdefault(detail, Part())
        else:
            part.events.append((kind, detail))
    return parts


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        kind, _, detail = line.partition(" ")
        yield kind, detail
