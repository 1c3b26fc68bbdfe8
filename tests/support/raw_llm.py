"""An LLM that sends exactly the bytes that it is told, whatever they are, and keeps what it was sent."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable
from typing import Any

Piece = bytes | float | threading.Event


def sse(*events: Any, done: bool = True) -> bytes:
    """Events as OpenAI sends them; texts as they are, and anything else as JSON."""
    data = [each if isinstance(each, str) else json.dumps(each) for each in (*events, *(["[DONE]"] if done else []))]
    return "".join(f"data: {each}\n\n" for each in data).encode()


def chunk(delta: Any, reason: Any = None, **more: Any) -> dict[str, Any]:
    """A chunk with one choice; `more` are further fields of the choice."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason} | more
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "fake"}
    return head | {"choices": [choice]}


def completion(message: Any, **more: Any) -> dict[str, Any]:
    """A whole answer; `more` are further fields of its choice."""
    choice = {"index": 0, "message": message, "finish_reason": "stop"} | more
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "fake", "choices": [choice]}


class RawLLM:
    """`pieces` are bytes to send, and between them seconds to wait, or events to wait for.

    `asked` has (request line, headers, body).
    """

    def __init__(self) -> None:
        self.status = "200 OK"
        self.headers: dict[str, str] = {"content-type": "text/event-stream"}
        self.before: list[Piece] = []
        """Of the same kind; they come before the head."""
        self.pieces: list[Piece] = []
        self.asked: list[tuple[str, dict[str, str], Any]] = []

    def says(self, body: Any, *, status: str = "200 OK", **headers: str) -> None:
        """`body` is JSON."""
        self.answers([json.dumps(body).encode()], status, {"content-type": "application/json"} | headers)

    def streams(self, *pieces: Piece) -> None:
        self.answers(pieces, "200 OK", {"content-type": "text/event-stream"})

    def answers(self, pieces: Iterable[Piece], status: str, headers: dict[str, str]) -> None:
        self.pieces, self.status, self.headers = list(pieces), status, headers

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.asked.append((head[0], headers, json.loads(body) if body else None))
            lines = [f"HTTP/1.1 {self.status}", *(f"{name}: {value}" for name, value in self.headers.items())]
            head_bytes = "\r\n".join([*lines, "connection: close", "", ""]).encode()
            for piece in (*self.before, head_bytes, *self.pieces):
                if isinstance(piece, float):
                    await asyncio.sleep(piece)
                elif isinstance(piece, threading.Event):
                    while not piece.is_set():
                        await asyncio.sleep(0.01)
                else:
                    writer.write(piece)
                    await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
