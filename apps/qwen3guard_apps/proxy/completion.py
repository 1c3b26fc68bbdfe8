"""One answer of an LLM: the prompt is judged while the LLM starts, and what it writes before anybody sees it.

A reader takes the LLM's answer as it comes, a task for each choice has it judged, and `answer` sends what is cleared;
they meet in one event, `_changed`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from qwen3guard_client import AsyncGuardClient

from qwen3guard_apps.doors.door import ChatDoor, Door
from qwen3guard_apps.openai.answer import ChatAnswer
from qwen3guard_apps.openai.api_error import ApiError, invalid, of_guard, proxy_failed, upstream_failed
from qwen3guard_apps.openai.choice import unreadable
from qwen3guard_apps.openai.readers import Readers
from qwen3guard_apps.openai.request import GuardedRequest
from qwen3guard_apps.proxy.judged import Judged
from qwen3guard_apps.proxy.scope import Scopes
from qwen3guard_apps.proxy.settings import Settings
from qwen3guard_apps.proxy.upstream import BAD_GATEWAY, LlmError, Upstream, headers_back, parsed

ID_HEADER = "x-guard-request-id"
REMOVED_HEADER = "x-guard-removed"
"""Names the fields of the request that the LLM did not get."""
MOST_NAMED = 32
"""The most fields that it names: clients take only so long a header."""
RECORD: web.RequestKey[dict[str, Any]] = web.RequestKey("record", dict)
"""What a request's line in the log will say."""
AT_ONCE_BYTES_OF_AN_LLM = 2**11
"""In so many there are some hundred values at most, and the event loop reads piece after piece of them."""
ENDING_S = 3.0
"""How long the proxy's end waits for answers to end, then for those that it ended, and for sessions."""


@dataclass
class Place:
    """What all completions of one proxy share."""

    settings: Settings
    guard: AsyncGuardClient
    upstream: Upstream
    readers: Readers = field(default_factory=lambda: Readers(AT_ONCE_BYTES_OF_AN_LLM))
    """Of what the LLM writes. They are others than those of requests, which it does not keep waiting."""
    scopes: Scopes = field(default_factory=Scopes)
    running: set[asyncio.Task[None]] = field(default_factory=set)
    """Tasks that may outlive their request, such as a check whose session is still to be ended."""
    answering: set[Completion] = field(default_factory=set)

    def stop(self) -> None:
        """Ends the answers that are still on their way, with an error: the proxy stops."""
        for completion in self.answering:
            completion.stop()

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


def _is_error(body: dict[str, Any]) -> bool:
    """Whether the LLM tells an error in place of an answer or of a chunk, in any server's form."""
    if body.get("error") or body.get("object") == "error":
        return True
    told = (body.get(name) for name in ("message", "detail"))
    is_told = any(isinstance(each, str | list) and each for each in told)
    return "choices" not in body and (body.get("error") is not None or is_told)


class Completion(ABC):
    """One request to the LLM and its answer: the part that is the same for streamed and for whole answers."""

    def __init__(self, place: Place, request: web.Request, read: GuardedRequest, door: Door | None = None) -> None:
        """`read` is what `door` made of the request. Raises ApiError for a wrong `n`."""
        settings = place.settings
        door = door or ChatDoor()
        each = 1 if read.n is None else read.n
        if isinstance(each, bool) or not isinstance(each, int) or not 1 <= each <= settings.max_choices:
            raise invalid(f"n must be a whole number from 1 to {settings.max_choices}.")
        count = each * len(read.conversations)
        if count > settings.max_choices:
            raise invalid(f"n times the number of prompts is {count}; a request takes {settings.max_choices} at most.")
        self._place = place
        self._settings = settings
        self._request = request
        self._asked = read.sent
        self._turns = read.conversation
        self._path = door.path
        self._door = door.answer(read)
        self._changed = asyncio.Event()
        scope = place.scopes.of(request.headers)
        guard = place.guard.in_scope(scope) if scope else place.guard
        self._choices = [
            Judged(guard, settings, turns, self._changed) for turns in read.conversations for _ in range(each)
        ]
        self._answer = ChatAnswer(self._door.asked, count, settings.pass_fields, self._door.id_begins)
        self._failure: ApiError | None = None
        """Why the LLM's answer ends early, or is none."""
        self._headers = {REMOVED_HEADER: ", ".join(read.removed[:MOST_NAMED])} if read.removed else {}
        self.error: ApiError | None = None
        """The error that was sent as an event, because the stream had begun."""
        self._ended = False
        """Nothing more comes from the LLM."""
        self._reader: asyncio.Task[None] | None = None
        self._stopping: ApiError | None = None
        """Why this ends, where the proxy stops."""
        self._is_cut = False
        """Whether that ends it before all that the LLM wrote is judged."""

    async def answer(self) -> web.StreamResponse:
        """Raises ApiError if nothing was sent yet."""
        self._place.answering.add(self)
        try:
            for choice in self._choices:
                choice.start(self._place.keep)
            if self._settings.prompt_check == "before":
                await self._until(lambda: all(choice.begins or choice.error for choice in self._choices), checked=True)
            if not self._all_stopped:
                self._reader = asyncio.create_task(self._read())
            return await self._relay()
        finally:
            self._place.answering.discard(self)
            for choice in self._choices:
                choice.leave()
            if self._reader:
                self._reader.cancel()  # not awaited: the client may close now, which cancels this handler
                self._place.keep(self._reader)

    def stop(self) -> None:
        """Ends the LLM's answer, wherever it is."""
        self._stopping = ApiError(503, "server_error", "stopping", "The proxy is stopping.", retry=True)
        if self._reader and not self._ended:
            self._reader.cancel()
        else:
            self._is_cut = True
        self._changed.set()

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
        if self._stopping and self._is_cut:
            raise self._stopping
        for choice in self._choices:
            if choice.stopped and self._settings.on_flag == "error":
                guard = choice.verdict()
                raise ApiError(400, "invalid_request_error", "content_filter", str(choice.flag), guard=guard)
            if choice.failed and choice.error:
                raise of_guard(choice.error)

    @property
    def removed(self) -> int:
        """How many fields of the answer were removed."""
        return self._answer.removed + self._door.removed

    async def _read(self) -> None:
        # What ends without its end must not look whole.
        failure: ApiError | None = upstream_failed("The LLM broke off.")
        try:
            failure = await self._exchange()
        finally:
            self._failure = self._stopping or failure
            self._ended = True
            for choice in self._choices:
                choice.close()
            self._changed.set()

    async def _exchange(self) -> ApiError | None:
        """Sends the request and reads the answer. Returns the error that ends it early."""
        place, request = self._place, self._request
        query = request.rel_url.raw_query_string
        try:
            async with place.upstream.call("POST", self._path, query, request.headers, self._asked) as answer:
                await place.upstream.accepted(answer)
                self._headers |= headers_back(answer)
                await self._take(answer)
        except LlmError as error:
            return await self._cleared(error)
        except ApiError as error:
            return error
        except RecursionError:
            return unreadable()
        except Exception as error:
            return proxy_failed(error)
        return None

    async def _cleared(self, error: LlmError) -> ApiError:
        """The LLM's error, judged as if it were its answer, or without its words if the guard does not clear them."""
        changed = asyncio.Event()
        judged = Judged(self._place.guard, self._settings, self._turns, changed)
        judged.start(self._place.keep)
        try:
            judged.write(error.words)
            judged.close()
            while not (judged.final or judged.stopped or judged.failed):
                changed.clear()
                await changed.wait()
        finally:
            judged.leave()
        if not judged.final or judged.stopped:
            return error.withheld()
        if judged.flag:
            error.mark(judged.verdict())
        return error

    def _parsed(self, data: str | bytes) -> Any:
        """JSON of the LLM. Raises LlmError where it is an error, and ApiError where it is no JSON."""
        body = parsed(data, with_logprobs=self._answer.with_logprobs)
        if isinstance(body, dict) and (told := body if _is_error(body) else self._door.failure(body)):
            raise LlmError(BAD_GATEWAY, told, {})
        return body

    @abstractmethod
    async def _take(self, answer: aiohttp.ClientResponse) -> None:
        """Reads the LLM's answer, and gives its text to the choices. Raises ApiError."""

    @abstractmethod
    async def _relay(self) -> web.StreamResponse:
        """Sends the client what is cleared. Raises ApiError if nothing was sent yet."""
