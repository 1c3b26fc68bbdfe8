"""What the sync client does in another way than the async one: it runs in threads, over tritonclient's gRPC client.

tasks.py has the same names for the async client, from which the sync one is generated.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from qwen3guard_client.transport import connection
from qwen3guard_client.transport.calls import Call
from qwen3guard_client.transport.connection import CLOSE_S, Tls
from qwen3guard_client.transport.failures import deadline_exceeded

T = TypeVar("T")
Event = threading.Event
Queue = queue.SimpleQueue
Mutex = threading.Lock
Worker = threading.Thread
FAILURE = BaseException
"""What a worker hands on when it fails: all, since nobody else sees what ends a thread."""

sleep = time.sleep


def open_client(url: str, tls: Tls | None, token: str | None) -> Any:
    """tritonclient's client. Raises InvalidCredentials."""
    return connection.connect(triton.InferenceServerClient, url, tls, token)


class InFlight:
    """Requests on the wire. A time-out ends the wait and not the request."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._handles: dict[concurrent.futures.Future[Any], object] = {}
        """gRPC cancels a request whose handle is collected."""

    def infer(self, call: Call[Any], timeout_s: float) -> Any:
        """tritonclient's InferResult. Raises InferenceServerException."""
        if timeout_s <= 0:
            raise deadline_exceeded()
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def set_answer(result: Any, error: InferenceServerException | None) -> None:
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        arguments = call.arguments(timeout_s)
        with self._lock:  # two threads in async_infer may get each other's requests
            handle = self._client.async_infer(callback=set_answer, **arguments)
        self._handles[answer] = handle
        answer.add_done_callback(self._handles.pop)
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            raise deadline_exceeded() from None

    def close(self) -> None:
        """Waits up to CLOSE_S for the requests on the wire."""
        concurrent.futures.wait(list(self._handles), timeout=CLOSE_S)


def start(work: Callable[[], None]) -> Worker:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def end(checker: Worker | None, reader: Worker | None, within_s: float) -> None:  # noqa: ARG001
    """Waits for the checker up to `within_s` seconds.

    A thread cannot be cancelled: both end when they see that no more is wanted, the reader after its LLM's next piece.
    """
    if checker:
        checker.join(within_s)


def read_source(source: Iterable[T], take: Callable[[T], None], wanted: Callable[[], bool]) -> None:
    """Gives each item of `source` to `take` while `wanted` is true, and closes a source of which no more is wanted.

    Raises what `source` raises.
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
