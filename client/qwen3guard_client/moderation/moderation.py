"""Guarding an LLM: its text goes in as it is written, and what may be shown comes out.

Three things go on at once: the LLM is read, its text is checked, and what is cleared is handed over. Pieces that
arrive during a check share the next one, so a guard that is slower than the LLM falls behind by one check.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import queue
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from qwen3guard_contract.errors import InvalidRequest, UnreadableAnswer
from qwen3guard_contract.verdict import Classification, PromptVerdict, TokenVerdict

from qwen3guard_client.moderation.cascade import Asking, Cascade
from qwen3guard_client.moderation.gate import Flag, Flagged, Gate, OnFlag, Segment
from qwen3guard_client.stream.state import Piece
from qwen3guard_client.stream.stream import AsyncStream, Stream
from qwen3guard_client.transport.calls import Call

T = TypeVar("T")
READ_AHEAD = 64
"""Pieces that are read from the LLM before they are checked."""
CLOSE_S = 1.0
"""How long the end waits for a check that nobody needs any more; the session ends behind our back."""


@dataclass(frozen=True)
class _Written:
    piece: Piece


@dataclass(frozen=True)
class _Judged:
    """What the guard has said since the last time; `last` when it has seen all."""

    prompt: PromptVerdict | None
    tokens: Sequence[TokenVerdict]
    last: bool = False


@dataclass(frozen=True)
class _ReadToEnd:
    """The LLM has ended, or failed."""

    error: BaseException | None


@dataclass(frozen=True)
class _Failed:
    """The check cannot go on."""

    error: BaseException


_Event = _Written | _Judged | _ReadToEnd | _Failed


class _Moderation:
    """What the sync and the async one have in common."""

    def __init__(self, gate: Gate, on_flag: OnFlag, cascade: Cascade | None) -> None:
        self._gate = gate
        self._cascade = cascade
        self._on_flag = on_flag
        self._failure: BaseException | None = None
        self._begun = False
        self.prompt_verdict: PromptVerdict | None = None
        self.verdicts: list[TokenVerdict] = []

    @property
    def flag(self) -> Flag | None:
        """What was found, and where; None as long as all is well."""
        return self._gate.flag

    @property
    def asked(self) -> int:
        """How often Gen was asked to confirm a flag."""
        return self._cascade.asked if self._cascade else 0

    @property
    def overruled(self) -> int:
        """How often it did not."""
        return self._cascade.overruled if self._cascade else 0

    def _begin(self) -> None:
        if self._begun:
            raise InvalidRequest("A moderation is iterated once.")
        self._begun = True

    def _take(self, event: _Judged) -> Iterator[Segment]:
        if event.prompt:
            self.prompt_verdict = event.prompt
            self._gate.prompt_judged(event.prompt)
        self.verdicts += event.tokens
        yield from self._gate.judged(event.tokens)
        if event.last and not self._gate.stopped:
            yield from self._gate.finished()

    def _end(self) -> None:
        """Raises what there is to raise when nothing more is shown."""
        if self._gate.flag and self._on_flag == "raise":
            raise Flagged(self._gate.flag)
        if self._failure and not self._gate.stopped:
            raise self._failure


def _joined(pieces: Sequence[Piece]) -> Piece:
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(str(piece) for piece in pieces)
    return [int(token) for piece in pieces for token in piece]


class Moderation(_Moderation):
    """Iterate over it, once, for the segments that may be shown; afterwards it tells what was found.

    The LLM is read in a thread of its own, and closed from there when nothing more is wanted of it.
    """

    def __init__(
        self,
        stream: Stream,
        source: Iterable[Piece],
        gate: Gate,
        on_flag: OnFlag,
        *,
        cascade: Cascade | None,
        classify: Callable[[Call[Classification]], Classification],
    ) -> None:
        super().__init__(gate, on_flag, cascade)
        self._classify = classify
        self._stream = stream
        self._source = source
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._to_check: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._allowance = threading.Semaphore(READ_AHEAD)
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Segment]:
        """Leaving the loop early ends the session, and the LLM is read no further."""
        self._begin()
        reader = threading.Thread(target=self._read, daemon=True)
        checker = threading.Thread(target=self._check, daemon=True)
        try:
            reader.start()
            checker.start()
            while not self._gate.stopped:
                event = self._events.get()
                if isinstance(event, _Failed):
                    raise event.error
                if isinstance(event, _Written):
                    shown = list(self._gate.wrote(event.piece))
                    self._to_check.put(event.piece)
                    yield from shown
                elif isinstance(event, _ReadToEnd):
                    self._failure = event.error
                    self._to_check.put(None)
                else:
                    yield from self._take(event)
                    if event.last:
                        break
            self._end()
        finally:
            self._closed.set()
            self._allowance.release()
            self._to_check.put(None)
            if checker.ident:
                checker.join(CLOSE_S)

    def _read(self) -> None:
        failure: BaseException | None = None
        try:
            for piece in self._source:
                if len(piece):
                    self._events.put(_Written(piece))
                    self._allowance.acquire()
                if self._closed.is_set():
                    break
        except BaseException as error:
            failure = error
        finally:
            if (close := getattr(self._source, "close", None)) and self._closed.is_set():
                with contextlib.suppress(Exception):
                    close()
        self._events.put(_ReadToEnd(failure))

    def _check(self) -> None:
        try:
            with self._stream as stream:
                self._events.put(_Judged(self._confirmed_prompt(stream.prompt_verdict), ()))
                seen = 0
                while (piece := self._next()) is not None:
                    if self._cascade:
                        self._cascade.wrote(piece)
                    stream.step(piece)
                    final = stream.final_verdicts
                    self._events.put(_Judged(None, self._confirmed(final[seen:])))
                    seen = len(final)
            self._events.put(_Judged(None, self._confirmed(stream.verdicts[seen:]), last=True))
        except BaseException as error:
            self._events.put(_Failed(error))

    def _confirmed_prompt(self, verdict: PromptVerdict) -> PromptVerdict:
        return self._ask(self._cascade.prompt(verdict)) if self._cascade else verdict

    def _confirmed(self, tokens: Sequence[TokenVerdict]) -> Sequence[TokenVerdict]:
        return self._ask(self._cascade.tokens(tokens)) if self._cascade else tokens

    def _ask(self, asking: Asking[T]) -> T:
        try:
            call = next(asking)
            while True:
                try:
                    found = self._classify(call)
                except UnreadableAnswer as error:
                    call = asking.throw(error)
                else:
                    call = asking.send(found)
        except StopIteration as done:
            return cast(T, done.value)

    def _next(self) -> Piece | None:
        """All that was written since the last check; None at the end, or when nobody listens any more."""
        pieces = [self._to_check.get()]
        while pieces[-1] is not None and not self._to_check.empty():
            pieces.append(self._to_check.get())
        if pieces[-1] is None:
            self._to_check.put(None)  # for the next time
            pieces.pop()
        written = [piece for piece in pieces if piece is not None]
        self._allowance.release(max(1, len(written)))
        return _joined(written) if written and not self._closed.is_set() else None


class AsyncModeration(_Moderation):
    """Iterate over it, awaiting, once, for the segments that may be shown; afterwards it tells what was found.

    An ordinary iterable is read in a thread, so that waiting for the LLM never stops the event loop.
    """

    def __init__(
        self,
        stream: AsyncStream,
        source: AsyncIterable[Piece] | Iterable[Piece],
        gate: Gate,
        on_flag: OnFlag,
        *,
        cascade: Cascade | None,
        classify: Callable[[Call[Classification]], Awaitable[Classification]],
    ) -> None:
        super().__init__(gate, on_flag, cascade)
        self._classify = classify
        self._stream = stream
        self._source = source
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._to_check: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._allowance = asyncio.Semaphore(READ_AHEAD)

    async def __aiter__(self) -> AsyncIterator[Segment]:
        """Leaving the loop early ends the session, and the LLM is read no further."""
        self._begin()
        reader = asyncio.create_task(self._read())
        checker = asyncio.create_task(self._check())
        try:
            while not self._gate.stopped:
                event = await self._events.get()
                if isinstance(event, _Failed):
                    raise event.error
                if isinstance(event, _Written):
                    shown = list(self._gate.wrote(event.piece))
                    self._to_check.put_nowait(event.piece)
                    for segment in shown:
                        yield segment
                elif isinstance(event, _ReadToEnd):
                    self._failure = event.error
                    self._to_check.put_nowait(None)
                else:
                    for segment in self._take(event):
                        yield segment
                    if event.last:
                        break
            self._end()
        finally:
            reader.cancel()
            checker.cancel()
            await asyncio.wait([reader, checker], timeout=CLOSE_S)

    async def _read(self) -> None:
        failure: BaseException | None = None
        pieces = self._source if isinstance(self._source, AsyncIterable) else _in_thread(self._source)
        try:
            async for piece in pieces:
                if len(piece):
                    await self._allowance.acquire()
                    self._events.put_nowait(_Written(piece))
        except Exception as error:
            failure = error
        finally:
            for each in (pieces, self._source):
                with contextlib.suppress(Exception):
                    await _close(each)
        self._events.put_nowait(_ReadToEnd(failure))

    async def _check(self) -> None:
        try:
            async with self._stream as stream:
                self._events.put_nowait(_Judged(await self._confirmed_prompt(stream.prompt_verdict), ()))
                seen = 0
                while (piece := await self._next()) is not None:
                    if self._cascade:
                        self._cascade.wrote(piece)
                    await stream.step(piece)
                    final = stream.final_verdicts
                    self._events.put_nowait(_Judged(None, await self._confirmed(final[seen:])))
                    seen = len(final)
            self._events.put_nowait(_Judged(None, await self._confirmed(stream.verdicts[seen:]), last=True))
        except Exception as error:
            self._events.put_nowait(_Failed(error))

    async def _confirmed_prompt(self, verdict: PromptVerdict) -> PromptVerdict:
        return await self._ask(self._cascade.prompt(verdict)) if self._cascade else verdict

    async def _confirmed(self, tokens: Sequence[TokenVerdict]) -> Sequence[TokenVerdict]:
        return await self._ask(self._cascade.tokens(tokens)) if self._cascade else tokens

    async def _ask(self, asking: Asking[T]) -> T:
        try:
            call = next(asking)
            while True:
                try:
                    found = await self._classify(call)
                except UnreadableAnswer as error:
                    call = asking.throw(error)
                else:
                    call = asking.send(found)
        except StopIteration as done:
            return cast(T, done.value)

    async def _next(self) -> Piece | None:
        """All that was written since the last check; None at the end."""
        pieces = [await self._to_check.get()]
        while pieces[-1] is not None and not self._to_check.empty():
            pieces.append(self._to_check.get_nowait())
        if pieces[-1] is None:
            self._to_check.put_nowait(None)  # for the next time
            pieces.pop()
        for _ in pieces:
            self._allowance.release()
        return _joined([piece for piece in pieces if piece is not None]) if pieces else None


async def _in_thread(source: Iterable[Piece]) -> AsyncIterator[Piece]:
    pieces = iter(source)
    end = object()
    while (piece := await asyncio.to_thread(next, pieces, end)) is not end:
        yield piece  # type: ignore[misc]


async def _close(source: object) -> None:
    """Ends whatever stands behind an iterator, under any of the names that this goes by."""
    for name in ("aclose", "close"):
        if close := getattr(source, name, None):
            if inspect.isawaitable(closing := close()):
                await closing
            return
