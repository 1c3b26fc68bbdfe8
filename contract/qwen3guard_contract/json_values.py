"""How many values a JSON value has: what reading it costs."""

from __future__ import annotations

from typing import Any

MOST_VALUES = 100_000
"""Reading a value takes tens of microseconds; conversations and answers of a whole context have some thousands."""


def has_too_many(value: Any, *, besides: str | None = None) -> bool:
    """Whether `value` has more than MOST_VALUES in it, those in fields named `besides` not counted."""
    count, inner = 0, [value]
    while inner and count <= MOST_VALUES:
        outer = inner.pop()
        held = [each for name, each in outer.items() if name != besides] if isinstance(outer, dict) else outer
        count += len(held)
        inner += [each for each in held if isinstance(each, dict | list)]
    return count > MOST_VALUES
