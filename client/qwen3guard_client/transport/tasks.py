"""What the async client does in another way than the sync one: it runs in tasks, over tritonclient's asyncio client.

threads.py has the same names for the sync client, which is generated from the async one.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import tritonclient.grpc.aio as triton

from qwen3guard_client.transport import connection
from qwen3guard_client.transport.calls import Call
from qwen3guard_client.transport.connection import CLOSE_S, Tls
from qwen3guard_client.transport.failures import deadline_exceeded

T = TypeVar("T")
Event = asyncio.Event
Queue = asyncio.Queue
Mutex = contextlib.nullcontext
"""Tasks take turns at an await alone, and nobody awaits inside a mutex."""
Worker = asyncio.Task[None]
FAILURE = Exception
"""What a worker hands on when it fails. A cancelled task is no failure."""

sleep = asyncio.sleep


def open_client(url: str, tls: Tls | None, token: str | None) -> Any:
    """tritonclient's client. Raises InvalidCredentials."""
    return connection.connect(triton.InferenceServerClient, url, tls, token)


class InFlight:
    """Requests on the wire. A time-out, or a caller that is cancelled, ends the wait and not the request."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._requests: set[asyncio.Future[Any]] = set()

    async def infer(self, call: Call[Any], timeout_s: float) -> Any:
        """tritonclient's InferResult. Raises InferenceServerException."""
        if timeout_s <= 0:
            raise deadline_exceeded()
        request = asyncio.ensure_future(self._client.infer(**call.arguments(timeout_s)))
        self._requests.add(request)
        request.add_done_callback(self._remove)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(request)
        except TimeoutError:
            raise deadline_exceeded() from None

    def _remove(self, request: asyncio.Future[Any]) -> None:
        self._requests.discard(request)
        if not request.cancelled():
            request.exception()  # where its caller has gone, nobody else looks at it

    async def close(self) -> None:
        """Waits up to CLOSE_S for the requests on the wire."""
        if self._requests:
            await asyncio.wait(self._requests, timeout=CLOSE_S)


def start(work: Callable[[], Coroutine[Any, Any, None]]) -> Worker:
    return asyncio.create_task(work())


async def end(checker: Worker | None, reader: Worker | None, within_s: float) -> None:
    """Cancels both, and waits for them up to `within_s` seconds."""
    workers = [worker for worker in (checker, reader) if worker]
    for worker in workers:
        worker.cancel()
    if workers:
        await asyncio.wait(workers, timeout=within_s)


async def read_source(
    source: AsyncIterable[T] | Iterable[T], take: Callable[[T], Awaitable[None]], wanted: Callable[[], bool]
) -> None:
    """Gives each item of `source` to `take` while `wanted` is true, and closes the source. Raises what it raises.

    An ordinary iterable is read in a thread, so that waiting for it does not stop the event loop.
    """
    items = source if isinstance(source, AsyncIterable) else _in_thread(source)
    try:
        async for item in items:
            await take(item)
            if not wanted():
                break
    finally:
        for opened in (items, source):
            with contextlib.suppress(Exception):
                await _close(opened)


async def _in_thread(source: Iterable[T]) -> AsyncIterator[T]:
    items = iter(source)
    end_of_items = object()
    while (item := await asyncio.to_thread(next, items, end_of_items)) is not end_of_items:
        yield item  # type: ignore[misc]


async def _close(source: object) -> None:
    """Calls the source's `aclose`, or else its `close`, if it has one."""
    for name in ("aclose", "close"):
        if close := getattr(source, name, None):
            if inspect.isawaitable(closing := close()):
                await closing
            return
