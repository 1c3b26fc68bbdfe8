"""One chat completion: the prompt is judged while the LLM starts, and what it writes before anybody sees it.

A reader takes the LLM's answer as it comes, a task for each choice has it judged, and `answer` sends what is cleared;
they meet in one event, `_changed`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from qwen3guard_client import AsyncGuardClient

from qwen3guard_apps.openai import conversation, texts
from qwen3guard_apps.openai.api_error import ApiError, invalid, of_guard, upstream_failed
from qwen3guard_apps.proxy.judged import Judged
from qwen3guard_apps.proxy.settings import Settings
from qwen3guard_apps.proxy.upstream import Upstream, WholeAnswer, choices_of, headers_back, parsed, unreadable

ID_HEADER = "x-guard-request-id"
RECORD: web.RequestKey[dict[str, Any]] = web.RequestKey("record", dict)
"""What a request's line in the log will say."""
ENDING_S = 3.0
"""How long the proxy's end waits for sessions to end."""


@dataclass
class Place:
    """What all completions of one proxy share."""

    settings: Settings
    guard: AsyncGuardClient
    upstream: Upstream
    running: set[asyncio.Task[None]] = field(default_factory=set)
    """Tasks that may outlive their request, such as a check whose session is still to be ended."""

    def keep(self, task: asyncio.Task[None]) -> None:
        """Lets `task` end in its own time; `close` waits for it. Whoever needs its error has been told by then."""
        self.running.add(task)
        task.add_done_callback(self._remove)

    def _remove(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio would log it, with its traceback

    async def close(self) -> None:
        await self.upstream.close()
        if self.running:
            await asyncio.wait(self.running, timeout=ENDING_S)


class Completion(ABC):
    """One request to the LLM and its answer: the part that is the same for streamed and for whole answers."""

    def __init__(self, place: Place, request: web.Request, asked: dict[str, Any]) -> None:
        """Raises ApiError for a request that cannot be judged."""
        settings = place.settings
        count = asked.get("n") or 1
        if not isinstance(count, int) or not 1 <= count <= settings.max_choices:
            raise invalid(f"n must be a whole number from 1 to {settings.max_choices}.")
        self._place = place
        self._settings = settings
        self._request = request
        self._asked = asked
        self._changed = asyncio.Event()
        turns = conversation.read(asked)
        self._choices = [Judged(place.guard, settings, turns, self._changed) for _ in range(count)]
        self._refusal: WholeAnswer | None = None
        """The LLM's answer, if it did not take the request."""
        self._failure: ApiError | None = None
        self._headers: dict[str, str] = {}
        self.error: ApiError | None = None
        """The error that was sent as an event, because the stream had begun."""
        self._ended = False
        """Nothing more comes from the LLM."""

    async def answer(self) -> web.StreamResponse:
        """Raises ApiError if nothing was sent yet."""
        reader = None
        try:
            for choice in self._choices:
                choice.start(self._place.keep)
            if self._settings.prompt_check == "before":
                await self._until(lambda: all(choice.begins or choice.error for choice in self._choices), checked=True)
            if not self._all_stopped:
                reader = asyncio.create_task(self._read())
            return await self._relay()
        finally:
            for choice in self._choices:
                choice.leave()
            if reader:
                reader.cancel()  # not awaited: the client may close now, which cancels this handler
                self._place.keep(reader)

    @property
    def flagged_by(self) -> str | None:
        flags = [choice.flag for choice in self._choices if choice.flag]
        return None if not flags else "prompt" if flags[0].in_prompt else "response"

    @property
    def unguarded(self) -> bool:
        return any(choice.unguarded for choice in self._choices)

    @property
    def _all_stopped(self) -> bool:
        return all(choice.stopped for choice in self._choices)

    async def _until(self, holds: Callable[[], bool], *, checked: bool = False) -> None:
        """Waits. With `checked`, raises the ApiError that forbids the answer."""
        while True:
            self._changed.clear()
            if checked:
                self._raise_guards()
            if holds():
                return
            await self._changed.wait()

    def _raise_guards(self) -> None:
        for choice in self._choices:
            if choice.stopped and self._settings.on_flag == "error":
                guard = choice.verdict()
                raise ApiError(400, "invalid_request_error", "content_filter", str(choice.flag), guard=guard)
            if choice.failed and choice.error:
                raise of_guard(choice.error)

    async def _read(self) -> None:
        try:
            place, request = self._place, self._request
            async with place.upstream.call(
                "POST", "chat/completions", request.query_string, request.headers, self._asked
            ) as answer:
                self._headers = headers_back(answer)
                if answer.status != 200:
                    self._refusal = await place.upstream.whole(answer)
                else:
                    await self._take(answer)
        except ApiError as error:
            self._failure = error
        except UnicodeDecodeError:
            self._failure = unreadable()
        except BaseException:  # what ends without its end must not look whole
            self._failure = upstream_failed("The LLM broke off.")
            raise
        finally:
            self._ended = True
            for choice in self._choices:
                choice.close()
            self._changed.set()

    @abstractmethod
    async def _take(self, answer: aiohttp.ClientResponse) -> None:
        """Reads the LLM's answer, and gives its text to the choices. Raises ApiError."""

    @abstractmethod
    async def _relay(self) -> web.StreamResponse:
        """Sends the client what is cleared. Raises ApiError if nothing was sent yet."""

    def _empty(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        """The proxy's own answer, if the LLM gave none."""
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": str(self._asked.get("model", "")),
            "choices": choices,
        }


class WholeCompletion(Completion):
    """The LLM answers in one piece."""

    _body: dict[str, Any] | None = None

    async def _take(self, answer: aiohttp.ClientResponse) -> None:
        body = parsed((await self._place.upstream.whole(answer)).body)
        for index, _, message in choices_of(body, "message", len(self._choices)):
            self._choices[index].write(texts.written(message))
        self._body = body

    async def _relay(self) -> web.StreamResponse:
        await self._until(self._is_over, checked=True)
        if self._refusal:
            return self._refusal.response()
        if self._failure and not self._all_stopped:
            raise self._failure
        return web.json_response(self._judged(), headers=self._headers)

    def _is_over(self) -> bool:
        # An answer that is stopped at its prompt waits for no LLM.
        judged = all(choice.stopped or choice.final for choice in self._choices)
        return bool(self._refusal or self._failure or self._all_stopped or (self._ended and judged))

    def _judged(self) -> dict[str, Any]:
        if self._body is None:
            message = {"role": "assistant", "content": ""}
            choices = [{"index": index, "message": dict(message)} for index in range(len(self._choices))]
            self._body = self._empty("chat.completion", choices)
        for index, choice, message in choices_of(self._body, "message", len(self._choices)):
            judged = self._choices[index]
            texts.drop_unread(message)
            if judged.stopped:
                texts.cut(message, judged.limit - (judged.length - len(texts.written(message))))
                texts.drop_calls(message)
                choice["finish_reason"] = "content_filter"
                choice["logprobs"] = None
            choice["guard"] = judged.verdict()
        return self._body
