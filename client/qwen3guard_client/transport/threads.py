"""The part of the sync client that differs from the async one: threads, and tritonclient's gRPC client.

tasks.py has the same names for the async client, from which the sync one is generated.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import tritonclient.grpc as triton
from qwen3guard_contract.errors import GuardError, InvalidRequest, Unreachable
from tritonclient.utils import InferenceServerException

from qwen3guard_client.transport import connection
from qwen3guard_client.transport.calls import Call
from qwen3guard_client.transport.connection import CLOSE_S, Tls
from qwen3guard_client.transport.failures import client_closed, deadline_exceeded

T = TypeVar("T")
Event = threading.Event
Queue = queue.SimpleQueue
Mutex = threading.Lock
Worker = threading.Thread

sleep = time.sleep


def open_client(url: str, tls: Tls | None, token: str | None) -> Any:
    """Returns tritonclient's client. Raises InvalidRequest or InvalidCredentials."""
    return connection.connect(triton.InferenceServerClient, url, tls, token)


class InFlight:
    """The connection, and the requests on it. A time-out ends the wait and not the request."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._client = connect()
        self._is_closed = False
        self._lock = threading.Lock()
        self._handles: dict[concurrent.futures.Future[Any], object] = {}
        """gRPC cancels a request if its handle is collected."""
        self._undoing: list[threading.Thread] = []

    @property
    def client(self) -> Any:
        """tritonclient's client. Raises InvalidRequest after `close`."""
        if self._is_closed:
            raise client_closed()
        return self._client

    def infer(self, call: Call[Any], timeout_s: float, scope: str | None = None) -> Any:
        """Returns tritonclient's InferResult. Raises InferenceServerException, InvalidRequest after `close`, or
        RuntimeError where the system has no room for a thread.
        """
        if timeout_s <= 0:
            raise deadline_exceeded()
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def set_answer(result: Any, error: InferenceServerException | None) -> None:
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        arguments = call.arguments(timeout_s, scope)
        with self._lock:  # two threads in async_infer may get each other's requests
            try:
                handle = self.client.async_infer(callback=set_answer, **arguments)
            except RuntimeError:
                self._leave_deaf()
                raise
        self._handles[answer] = handle
        answer.add_done_callback(self._handles.pop)
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            raise deadline_exceeded() from None

    def _leave_deaf(self) -> None:
        """Connects anew. Where no thread can be started, gRPC counts the request all the same, and from then on nobody
        hears an answer on that channel: each call would time out, and closing it, also as garbage or at the end of
        the process, would wait for ever. So it stays.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._client))
        self._client = self._connect()

    def complete(self, work: Callable[[], T], undo: Callable[[], object] | None = None) -> T:
        """Does `work`. A thread cannot be cancelled meanwhile. `undo` follows in the background after an answer that is
        an error.
        """
        try:
            return work()
        except GuardError as error:
            if undo and not isinstance(error, Unreachable):
                self._begin(undo)
            raise

    def _begin(self, undo: Callable[[], object]) -> None:
        def quietly() -> None:
            with contextlib.suppress(Exception):
                undo()

        thread = threading.Thread(target=quietly, daemon=True)
        self._undoing = [each for each in self._undoing if each.is_alive()] + [thread]
        thread.start()

    def close(self) -> None:
        """Waits up to CLOSE_S for the requests on the wire, and closes the connection."""
        deadline = time.monotonic() + CLOSE_S
        for thread in self._undoing:
            thread.join(max(deadline - time.monotonic(), 0))
        concurrent.futures.wait(list(self._handles), timeout=max(deadline - time.monotonic(), 0))
        with self._lock:
            self._is_closed = True
        self._client.close()


def guard_failure(error: BaseException) -> BaseException:
    """The error to raise for `error`, which ended a check."""
    return error


def start(work: Callable[[], None]) -> Worker:
    """Starts a worker."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def end(checker: Worker | None, reader: Worker | None, within_s: float) -> None:  # noqa: ARG001
    """Waits for the checker up to `within_s` seconds.

    A thread cannot be cancelled. Both end when they see that no more is wanted, the reader after its LLM's next piece.
    """
    if checker:
        checker.join(within_s)


def check_source(source: object) -> None:
    """Raises InvalidRequest for a source that `read_source` cannot read."""
    if not isinstance(source, Iterable):
        raise InvalidRequest("The source must be an iterable of pieces.")


def read_source(source: Iterable[T], take: Callable[[T], None], wanted: Callable[[], bool]) -> None:
    """Gives each item of `source` to `take` while `wanted` is true. If no more is wanted, closes the source.

    Raises the source's errors.
    """
    try:
        for item in source:
            take(item)
            if not wanted():
                break
    finally:
        if (close := getattr(source, "close", None)) and not wanted():
            with contextlib.suppress(Exception):
                close()
