"""The part of the async client that differs from the sync one: tasks, and tritonclient's asyncio client.

threads.py has the same names for the sync client, which is generated from the async one.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import tritonclient.grpc.aio as triton
from qwen3guard_contract.errors import GuardError, InvalidRequest, Unreachable

from qwen3guard_client.transport import connection
from qwen3guard_client.transport.calls import Call
from qwen3guard_client.transport.connection import CLOSE_S, Tls
from qwen3guard_client.transport.failures import cancelled, client_closed, deadline_exceeded

T = TypeVar("T")
Event = asyncio.Event
Queue = asyncio.Queue
Mutex = contextlib.nullcontext
"""A task gives way only at an await, and nobody awaits inside a mutex."""
Worker = asyncio.Task[None]

sleep = asyncio.sleep


def open_client(url: str, tls: Tls | None, token: str | None) -> Any:
    """Returns tritonclient's client. Raises InvalidRequest or InvalidCredentials."""
    return connection.connect(triton.InferenceServerClient, url, tls, token)


class InFlight:
    """The connection, and the requests on it. A time-out or a cancelled caller ends the wait and not the request.

    gRPC's asyncio channel belongs to one event loop: each loop gets its own connection when it makes its first request.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._clients: dict[asyncio.AbstractEventLoop, Any] = {}
        self._requests: set[asyncio.Future[Any]] = set()
        self._is_closed = False

    @property
    def client(self) -> Any:
        """tritonclient's client of the running loop. Raises InvalidRequest after `close`, or InvalidCredentials."""
        if self._is_closed:
            raise client_closed()
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            for ended in [each for each in list(self._clients) if each.is_closed()]:
                del self._clients[ended]
            self._clients[loop] = self._connect()
        return self._clients[loop]

    async def infer(self, call: Call[Any], timeout_s: float, scope: str | None = None) -> Any:
        """Returns tritonclient's InferResult. Raises InferenceServerException, or InvalidRequest after `close`."""
        if timeout_s <= 0:
            raise deadline_exceeded()
        request = self._keep(self.client.infer(**call.arguments(timeout_s, scope)))
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(request)
        except TimeoutError:
            raise deadline_exceeded() from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if request.cancelled() and not (task and task.cancelling()):  # the channel was closed, not the caller
                raise cancelled() from None
            raise

    async def complete(
        self, work: Callable[[], Awaitable[T]], undo: Callable[[], Awaitable[object]] | None = None
    ) -> T:
        """Awaits `work`. If the caller is cancelled, it goes on in the background.

        `undo` follows in the background after a caller that was cancelled, and after an answer that is an error.
        `close` waits for both.
        """
        working = self._keep(work())
        try:
            return await asyncio.shield(working)
        except (asyncio.CancelledError, GuardError):
            if undo:
                self._keep(_follow(working, undo))
            raise

    def _keep(self, work: Awaitable[T]) -> asyncio.Future[T]:
        future = asyncio.ensure_future(work)
        self._requests.add(future)
        future.add_done_callback(self._remove)
        return future

    def _remove(self, request: asyncio.Future[Any]) -> None:
        self._requests.discard(request)
        if not request.cancelled():
            request.exception()  # if its caller has gone, nobody else looks at it

    async def close(self) -> None:
        """Waits up to CLOSE_S for the requests of the running loop, and closes its connection.

        Connections of other loops are closed when they are collected.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CLOSE_S
        while requests := [each for each in list(self._requests) if each.get_loop() is loop]:
            if loop.time() >= deadline:
                break
            await asyncio.wait(requests, timeout=deadline - loop.time())
        self._is_closed = True
        client = self._clients.pop(loop, None)
        self._clients.clear()
        if client is not None:
            await client.close()


async def _follow(work: asyncio.Future[Any], undo: Callable[[], Awaitable[object]]) -> None:
    await asyncio.wait([work])
    if not work.cancelled() and not isinstance(work.exception(), Unreachable):
        with contextlib.suppress(Exception):
            await undo()


def guard_failure(error: BaseException) -> BaseException:
    """The error to raise for `error`, which ended a check. A cancelled call is Unreachable, as the caller goes on."""
    if isinstance(error, asyncio.CancelledError):
        return Unreachable("The call to the guard was cancelled.")
    return error


def start(work: Callable[[], Coroutine[Any, Any, None]]) -> Worker:
    """Starts a worker."""
    return asyncio.create_task(work())


async def end(checker: Worker | None, reader: Worker | None, within_s: float) -> None:
    """Cancels both, and waits for them up to `within_s` seconds."""
    workers = [worker for worker in (checker, reader) if worker]
    for worker in workers:
        worker.cancel()
    if workers:
        await asyncio.wait(workers, timeout=within_s)


def check_source(source: object) -> None:
    """Raises InvalidRequest for a source that `read_source` cannot read."""
    if not isinstance(source, AsyncIterable | Iterable):
        raise InvalidRequest("The source must be an iterable, or an async iterable, of pieces.")


async def read_source(
    source: AsyncIterable[T] | Iterable[T], take: Callable[[T], Awaitable[None]], wanted: Callable[[], bool]
) -> None:
    """Gives each item of `source` to `take` while `wanted` is true, and closes the source. Raises the source's errors.

    An ordinary iterable is read in a thread, so that the event loop does not wait for it.
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
