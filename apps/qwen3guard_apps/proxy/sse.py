"""Server-sent events, however their bytes are cut and their lines end. httpx-sse reads the lines."""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import Any

from httpx_sse._decoders import SSEDecoder  # not exported: the version is pinned

DONE = "[DONE]"
END = ""
"""What no event has as its data, for whoever asks for the next one."""
COMMENT = b": keep-alive\n\n"
"""A comment of the proxy's own: it keeps a connection open, and clients skip it."""
LINES_AT_ONCE = 100
"""After so many lines others have their turn: one piece can have hundreds of thousands, without any event."""
_LINE_ENDS = re.compile("\r\n|\r|\n")


async def events(source: AsyncIterable[bytes]) -> AsyncIterator[str | None]:
    """The data of each event, and None for a comment. Bytes that are not UTF-8 are read as U+FFFD.

    Unlike in the standard, an event that the end of the source cuts off counts: LLMs leave out the last blank line.
    """
    decoder = SSEDecoder()
    lines = 0
    async for line in _lines(source):
        lines += 1
        if lines % LINES_AT_ONCE == 0:
            await asyncio.sleep(0)
        if line.startswith(":"):
            yield None
        event = decoder.decode(line)
        if event and event.data.strip():
            yield event.data


async def _lines(source: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """The lines without their ends; two empty ones are added at the end of the source."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    lines = _Lines()
    async for piece in source:
        for line in lines.of(decoder.decode(piece)):
            yield line
    for line in lines.of(decoder.decode(b"", final=True) + "\n\n\n"):
        yield line


class _Lines:
    """Text in pieces, as lines. A carriage return ends a line at once; a line feed after it belongs to the same end."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._after_return = False

    def of(self, text: str) -> Iterator[str]:
        if not text:
            return
        if self._after_return:
            text = text.removeprefix("\n")
        self._after_return = text.endswith("\r")
        first, *rest = _LINE_ENDS.split(text)
        self._held.append(first)
        for part in rest:
            yield "".join(self._held)
            self._held = [part]


def event(data: Any, name: str | None = None) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode(errors="replace")
