"""Server-sent events, however their bytes are cut."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

DONE = "[DONE]"


async def events(source: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """The data of each event; comments and other fields are dropped. Raises UnicodeDecodeError.

    An event that the end of the source cuts off is none.
    """
    data: list[str] = []
    async for line in _lines(source):
        if not line and data:
            yield "\n".join(data)
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" ").decode())


async def _lines(source: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Whole lines; they end with a line feed, which a carriage return may precede."""
    held: list[bytes] = []
    async for piece in source:
        first, *rest = piece.split(b"\n")
        held.append(first)
        for part in rest:
            yield b"".join(held).removesuffix(b"\r")
            held = [part]


def event(data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return b"data: " + text.encode(errors="replace") + b"\n\n"
