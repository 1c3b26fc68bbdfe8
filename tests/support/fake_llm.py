"""A double of an LLM behind OpenAI's API, in its own thread: what it says, how fast, and where it breaks is set."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from support.texts import cut


class Loop:
    """An event loop in a thread; `run` waits for what it is given."""

    def __enter__(self) -> Loop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


@dataclass
class FakeLLM:
    """`text` may be one for each choice. `tear` cuts the bytes of the stream at odd places."""

    text: str | list[str] = "Hello."
    start_s: float = 0.0
    token_s: float = 0.0
    longest: int = 6
    tear: bool = False
    dies_after: int | None = None
    status: int = 200
    writes: str = "content"
    extra: dict[str, Any] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    started: int = 0
    cancelled: int = 0
    ended: int = 0

    async def start(self) -> None:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self._complete)
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/embeddings", self._embed)
        self._runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def _embed(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return web.json_response({"object": "list", "model": "embed", "data": data, "usage": usage})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.asked.append(asked)
        self.headers.append(dict(request.headers))
        self.started += 1
        try:
            await asyncio.sleep(self.start_s)
            if self.status != 200:
                error = {"message": "no", "type": "fake", "param": None, "code": "fake_refusal"}
                return web.json_response({"error": error}, status=self.status, headers={"x-request-id": "req_1"})
            answer = await (self._stream(request, asked) if asked.get("stream") else self._whole(asked))
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled += 1
            raise
        self.ended += 1
        return answer

    def _texts(self, asked: dict[str, Any]) -> list[str]:
        return self.text if isinstance(self.text, list) else [self.text] * (asked.get("n") or 1)

    async def _whole(self, asked: dict[str, Any]) -> web.Response:
        texts = self._texts(asked)
        await asyncio.sleep(self.token_s * len(texts[0]) / 4)
        message: dict[str, Any] = {"role": "assistant", "content": None, "annotations": []}
        return web.json_response(
            {
                "id": "chatcmpl-fake",
                "object": "chat.completion",
                "created": 7,
                "model": "fake",
                "choices": [
                    {"index": index, "message": message | {self.writes: text} | self.extra, "finish_reason": "stop"}
                    for index, text in enumerate(texts)
                ],
                "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
            }
        )

    async def _stream(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "x-request-id": "req_1"})
        await response.prepare(request)
        source = random.Random(11)
        began = time.monotonic()
        for sent, chunk in enumerate(self._chunks(asked, source), start=1):
            data = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()
            for piece in self._torn(data, source):
                await response.write(piece)
            if sent == self.dies_after:
                assert request.transport
                request.transport.abort()
                return response
            await asyncio.sleep(max(0.0, began + sent * self.token_s - time.monotonic()))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _torn(self, data: bytes, source: random.Random) -> list[bytes]:
        if not self.tear:
            return [data]
        pieces = [b": a comment\r\n"]
        while data:
            size = source.randint(1, 9)
            pieces.append(data[:size])
            data = data[size:]
        return pieces

    def _chunks(self, asked: dict[str, Any], source: random.Random) -> list[dict[str, Any]]:
        def chunk(choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
            head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 7, "model": "fake"}
            return head | {"system_fingerprint": "fp_1"} | more | {"choices": choices}

        def choice(index: int, delta: dict[str, Any], reason: str | None = None) -> list[dict[str, Any]]:
            return [{"index": index, "delta": delta, "finish_reason": reason}]

        texts = self._texts(asked)
        found = [chunk(choice(index, {"role": "assistant", "content": ""})) for index in range(len(texts))]
        pieces = [cut(text, source, self.longest) for text in texts]
        for turn in range(max(map(len, pieces), default=0)):
            for index, each in enumerate(pieces):
                if turn < len(each):
                    found.append(chunk(choice(index, {self.writes: each[turn]})))
        found += [chunk(choice(index, dict(self.extra), "stop")) for index in range(len(texts))]
        if (asked.get("stream_options") or {}).get("include_usage"):
            found.append(chunk([], usage={"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}))
        return found
