"""Requests that go on when nobody waits for them any longer.

A time-out, or a caller that is cancelled, ends the wait and not the request. One that is cancelled on the wire, as by
gRPC's own deadline, may take a stream's sequence along in Triton, and end Triton 24.10 itself (its issue 7368).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any

from tritonclient.utils import InferenceServerException

from qwen3guard_client.transport.calls import Call

CLOSE_S = 1.0
"""How long closing waits for what is under way."""


class UnderWay:
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._handles: dict[concurrent.futures.Future[Any], object] = {}
        """gRPC cancels a request whose handle is collected."""

    def infer(self, call: Call[Any], timeout_s: float) -> Any:
        """tritonclient's InferResult. Raises InferenceServerException."""
        if timeout_s <= 0:
            raise late()
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def answered(result: Any, error: InferenceServerException | None) -> None:
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        arguments = call.arguments(timeout_s)
        with self._lock:  # two threads in async_infer may get each other's requests
            handle = self._connection.async_infer(callback=answered, **arguments)
        self._handles[answer] = handle
        answer.add_done_callback(self._handles.pop)
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            raise late() from None

    def close(self) -> None:
        concurrent.futures.wait(list(self._handles), timeout=CLOSE_S)


class AsyncUnderWay:
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._requests: set[asyncio.Future[Any]] = set()

    async def infer(self, call: Call[Any], timeout_s: float) -> Any:
        """tritonclient's InferResult. Raises InferenceServerException."""
        if timeout_s <= 0:
            raise late()
        request = asyncio.ensure_future(self._connection.infer(**call.arguments(timeout_s)))
        self._requests.add(request)
        request.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(request)
        except TimeoutError:
            raise late() from None

    def _ended(self, request: asyncio.Future[Any]) -> None:
        self._requests.discard(request)
        if not request.cancelled():
            request.exception()  # where its caller has gone, nobody else looks at it

    async def close(self) -> None:
        if self._requests:
            await asyncio.wait(self._requests, timeout=CLOSE_S)


def late() -> InferenceServerException:
    return InferenceServerException("Deadline Exceeded", status="StatusCode.DEADLINE_EXCEEDED")
