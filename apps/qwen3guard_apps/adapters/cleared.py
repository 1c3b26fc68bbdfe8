"""The items of an LLM's stream, in their order, each as soon as the guard has cleared its text and all before it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")
Moderate = Callable[[int, AsyncIterator[str]], AsyncIterable[str]]
"""Takes the number of a choice and its text as it is written, and gives its cleared text, in any pieces."""


class ClearedItems(Generic[T]):
    """`texts` gives the text of an item by choice, and an item without text as an empty mapping. Where it gives None,
    the item's text waits for the LLM's end, when `fields` gives what is judged of the choice instead, one by one.

    An error of `moderate` ends the items at once; an error of the LLM after what was written before it. Each choice
    is moderated on its own, all at the same time.
    """

    def __init__(
        self,
        items: AsyncIterable[T],
        texts: Callable[[T], Mapping[int, str | None]],
        moderate: Moderate,
        fields: Callable[[int], Sequence[str]] = lambda _: (),
    ) -> None:
        self._items = items
        self._texts = texts
        self._moderate = moderate
        self._fields = fields
        self._late: set[int] = set()
        """The choices with text that waits for the LLM's end."""
        self._waiting: deque[tuple[T, dict[int, float]]] = deque()
        """The items that are not given yet, and up to where the text of each choice must be cleared for it."""
        self._unjudged: dict[int, asyncio.Queue[str | None]] = {}
        self._written: dict[int, int] = {}
        self._cleared: dict[int, float] = {}
        self._judges: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    async def __aiter__(self) -> AsyncGenerator[T, None]:
        reader = self._start(self._read())
        try:
            while True:
                self._changed.clear()
                while self._waiting and self._is_cleared():
                    yield self._waiting.popleft()[0]
                for judge in self._judges:
                    if judge.done():
                        judge.result()
                if reader.done() and not self._waiting and all(judge.done() for judge in self._judges):
                    reader.result()
                    return
                await self._changed.wait()
        finally:
            for task in (reader, *self._judges):
                task.cancel()
            await asyncio.gather(reader, *self._judges, return_exceptions=True)

    def _is_cleared(self) -> bool:
        return all(self._cleared[choice] >= end for choice, end in self._waiting[0][1].items())

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._changed.set())
        return task

    async def _read(self) -> None:
        try:
            async for item in self._items:
                texts = self._texts(item)
                for choice, text in texts.items():
                    if text is None:
                        self._late.add(choice)
                    else:
                        self._write(choice, text)
                ends = {choice: inf if choice in self._late else self._written[choice] for choice in texts}
                self._waiting.append((item, ends))
                self._changed.set()
        finally:
            for unjudged in self._unjudged.values():
                unjudged.put_nowait(None)

    def _write(self, choice: int, text: str) -> None:
        if choice not in self._unjudged:
            self._unjudged[choice] = asyncio.Queue()
            self._written[choice] = 0
            self._cleared[choice] = 0
            self._judges.append(self._start(self._judge(choice)))
        self._written[choice] += len(text)
        self._unjudged[choice].put_nowait(text)

    async def _judge(self, choice: int) -> None:
        async def pieces() -> AsyncIterator[str]:
            while (text := await self._unjudged[choice].get()) is not None:
                yield text

        async for text in self._moderate(choice, pieces()):
            self._cleared[choice] += len(text)
            self._changed.set()
        for field in self._fields(choice) if choice in self._late else ():
            async for _ in self._moderate(choice, _alone(field)):
                pass
        self._cleared[choice] = inf


async def _alone(text: str) -> AsyncIterator[str]:
    yield text
