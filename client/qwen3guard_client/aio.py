"""The gRPC client. Its methods judge a conversation, moderate a response or an LLM, or take one step of a stream."""

from __future__ import annotations

import copy
import time
import uuid
from collections.abc import AsyncIterable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from qwen3guard_contract.errors import TextTooLong, Unreachable
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.verdict import Classification, RawAnswer, StepResult
from tritonclient.utils import InferenceServerException

from qwen3guard_client import windows as windowed
from qwen3guard_client.arguments import (
    OWN_SCOPE,
    Context,
    Piece,
    checked_flag,
    checked_scope,
    checked_text,
    checked_timeout,
)
from qwen3guard_client.moderation.aio import AsyncModeration
from qwen3guard_client.moderation.cascade import Cascade, Confirm
from qwen3guard_client.moderation.flow import Flow
from qwen3guard_client.moderation.gate import OnFlag, Release
from qwen3guard_client.stream.aio import AsyncStream
from qwen3guard_client.stream.state import StreamState
from qwen3guard_client.transport import calls, connection, failures, tasks
from qwen3guard_client.transport.calls import Call, Messages
from qwen3guard_client.transport.connection import DEFAULT_URL, TIMEOUT_S, Tls
from qwen3guard_client.transport.retries import Pauses

T = TypeVar("T")


class AsyncGuardClient:
    """A client of a guard server. Every call ends within `timeout_s` seconds, unless it has a `timeout_s` of its own.

    If a server that has answered before is gone, a call waits for it: it may be restarting. With
    `wait_for_server=False`, the call fails at once. Without `tls` nothing is encrypted, not even the `token`.
    What the server has computed for one conversation is used for others of the same `scope` that begin alike; who may
    send conversations of a scope may learn from the time of an answer how others of it begin. Each client has a scope
    of its own, unless it is given one; with None nothing is shared, between its own conversations neither.
    Every error is a GuardError. Wrong arguments are InvalidRequest or InvalidCredentials, before anything is sent.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = TIMEOUT_S,
        wait_for_server: bool = True,
        tls: Tls | None = None,
        token: str | None = None,
        scope: str | None = OWN_SCOPE,
    ) -> None:
        connection.check_arguments(url, tls, token)
        self._scope = uuid.uuid4().hex if scope is OWN_SCOPE else checked_scope(scope)
        self.url = url
        self.timeout_s = checked_timeout(timeout_s)
        self._wait_for_server = checked_flag(wait_for_server, "wait_for_server")
        self._answered = False
        self._token = token
        self._in_flight = tasks.InFlight(lambda: tasks.open_client(url, tls, token))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. A request on the wire gets one second to end. Later calls raise InvalidRequest."""
        await self._in_flight.close()

    @property
    def _connection(self) -> Any:
        """tritonclient's client."""
        return self._in_flight.client

    def in_scope(self, scope: str | None) -> Self:
        """This client, with the same connection, for conversations of another scope."""
        other = copy.copy(self)
        other._scope = checked_scope(scope)
        return other

    async def is_ready(self, model: str) -> bool:
        """Whether the server says that `model` is loaded. False if the server cannot be reached."""
        checked_text(model, "The model")
        try:
            return bool(await self._connection.is_model_ready(model, client_timeout=self.timeout_s))
        except InferenceServerException:
            return False

    async def answered(self, model: str) -> int:
        """How many batches of requests `model` has answered since it was loaded; 0 if the server does not tell."""
        checked_text(model, "The model")
        try:
            told = await self._connection.get_inference_statistics(model, client_timeout=self.timeout_s)
        except InferenceServerException:
            return 0
        return sum(int(each.execution_count + each.inference_stats.fail.count) for each in told.model_stats)

    async def classify(
        self,
        prompt: str | None = None,
        response: str | None = None,
        *,
        messages: Messages | str | None = None,
        context: Context = "whole",
        windows: bool = False,
        timeout_s: float | None = None,
    ) -> Classification:
        """Gen's verdict on the last turn of a conversation.

        Give a prompt, a prompt and its response, or `messages` in OpenAI's form (a list, or JSON text). If they do not
        fit into the context, TextTooLong is raised, unless one of these is asked for: `context="recent"` leaves out the
        oldest turns, and the result says how many; `windows` judges the last turn in overlapping windows, and the most
        severe one decides. All windows together must end within `timeout_s`. Raises a GuardError.
        """
        if not checked_flag(windows, "windows"):
            return await self.send(calls.classify(prompt, response, messages, context), timeout_s)
        return await self._judge(
            windowed.judge_in_windows(prompt, response, messages, context), self._within_s(timeout_s)
        )

    async def raw_answer(
        self,
        prompt: str | None = None,
        response: str | None = None,
        *,
        messages: Messages | str | None = None,
        context: Context = "whole",
        timeout_s: float | None = None,
    ) -> RawAnswer:
        """What Gen writes about the last turn of a conversation, with its tokens and their log-probabilities.

        It is not a verdict: it may be cut, or nothing that can be read. The arguments are those of `classify`, which
        reads the same text. Raises a GuardError.
        """
        within_s = self._within_s(timeout_s)
        deadline = time.monotonic() + within_s
        asked = calls.conversation_ids(prompt, response, messages, context)
        conversation = await self._send_within(asked, within_s)
        return await self._send_within(calls.raw_answer(conversation), deadline - time.monotonic())

    async def stream_step(
        self,
        session: int | str,
        *,
        prompt: str | None = None,
        messages: Messages | str | None = None,
        text: str | None = None,
        token_ids: Sequence[int] | None = None,
        position: int = 0,
        start: bool = False,
        end: bool = False,
        policy: Policy | None = None,
        context: Context = "whole",
        replay: bool = False,
        timeout_s: float | None = None,
    ) -> StepResult:
        """One step of a stream, as the server takes it. `stream` does this for you, and keeps the positions.

        `start` opens `session` (a new uuid4) with a conversation. To replay a lost session, it also brings the whole
        response so far in `text` or `token_ids`. Later steps write text or ids at an absolute `position`, counted in
        tokens; tokens that were there or after it are dropped. `end` makes the server forget the session. `replay`
        marks each step that writes again what a lost session held: the server admits so many replays at once.
        Raises a GuardError, which is SessionLost if the session must be opened again.
        """
        call = calls.stream_step(
            session,
            prompt=prompt,
            messages=messages,
            text=text,
            token_ids=token_ids,
            position=position,
            start=start,
            end=end,
            policy=policy,
            context=context,
            replay=replay,
        )
        return await self.send(call, timeout_s)

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | str | None = None,
        policy: Policy | None = None,
        context: Context = "whole",
        timeout_s: float | None = None,
    ) -> AsyncStream:
        """A response to moderate while it is written: a context manager that opens and ends the session.

        Without a `policy`, the server's own decides what is flagged. With `context="recent"`, the oldest turns are left
        out if they leave the response too little room, and the prompt's verdict says how many. Each step ends within
        `timeout_s`, even if it must wait for a restarting server and replay the stream to it.
        """
        within_s = self._within_s(timeout_s)
        state = StreamState(prompt, messages, policy, context)
        return AsyncStream(self._send_within, state, within_s, self._in_flight)

    def moderate(
        self,
        source: AsyncIterable[Piece | None] | Iterable[Piece | None],
        prompt: str | None = None,
        *,
        messages: Messages | str | None = None,
        release: Release = "after_check",
        on_flag: OnFlag = "stop",
        confirm: Confirm | None = None,
        policy: Policy | None = None,
        context: Context = "whole",
        timeout_s: float | None = None,
    ) -> AsyncModeration:
        """The segments of a response that may be shown, while an LLM writes it.

        The LLM is `source`, an iterable of text in any pieces, or of lists of token ids. Pieces that are empty or None
        are skipped.

        `release` is "after_check", which holds text back until it is cleared, or "before_check", which shows it at
        once and stops when the check finds a flag. `on_flag` is "stop", "raise" or "mark". "raise" raises Flagged
        after the text before the flag is shown. "mark" shows everything, and the segments from the flagged place on
        carry the flag. `confirm` is "strict", "loose" or None. If it is set, Gen is asked about each flag, with the
        conversation up to the end of the flagged token. If Gen finds it safe in that mode, the flag is dropped, and
        the text that was held back is shown. `context` is that of `stream`, for Gen too.

        The prompt is checked while the LLM starts. The loop raises a GuardError if the guard cannot judge. An error
        of `source` is raised after everything written before it was checked.
        """
        tasks.check_source(source)
        stream = self.stream(prompt, messages=messages, policy=policy, context=context, timeout_s=timeout_s)
        flow = Flow(release, on_flag, None if confirm is None else Cascade(confirm, prompt, messages, context))
        return AsyncModeration(stream, source, flow, lambda call: self.send(call, timeout_s))

    async def send(self, call: Call[T], timeout_s: float | None = None) -> T:
        """Sends `call` and returns its result. A long step is sent again until the server has taken all of it."""
        return await self._send_within(call, self._within_s(timeout_s))

    async def _judge(self, judging: windowed.Judging, within_s: float) -> Classification:
        deadline = time.monotonic() + within_s
        try:
            call = next(judging)
            while True:
                try:
                    result = await self._send_within(call, deadline - time.monotonic())
                except TextTooLong as too_long:
                    call = judging.throw(too_long)
                else:
                    call = judging.send(result)
        except StopIteration as done:
            return cast(Classification, done.value)

    def _within_s(self, timeout_s: float | None) -> float:
        return checked_timeout(self.timeout_s if timeout_s is None else timeout_s)

    async def _send_within(self, call: Call[T], within_s: float) -> T:
        """The same for seconds that may have passed already."""
        deadline = time.monotonic() + within_s
        pauses = Pauses()
        while True:
            try:
                reply = await self._in_flight.infer(call, deadline - time.monotonic(), self._scope)
            except InferenceServerException as error:
                failure = failures.error_of(error, token=self._token, url=self.url)
                failure.request_id = call.id
                gone = isinstance(failure, Unreachable) and self._answered and self._wait_for_server
                pause_s = pauses.next_s(deadline - time.monotonic()) if gone else None
                if pause_s is None:
                    raise failure from None
                await tasks.sleep(pause_s)
                continue
            self._answered = True
            if (result := call.result(reply)) is not None:
                return result
