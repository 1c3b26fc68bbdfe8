# Generated from aio.py by client/generate_sync.py; do not edit.
"""One moderated response, as a caller steps through it. Its state is in state.py."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import cast

from qwen3guard_contract.errors import GuardError, InternalError, Overloaded, SessionLost
from qwen3guard_contract.verdict import PromptVerdict, StepResult, TokenVerdict

from qwen3guard_client.arguments import Piece
from qwen3guard_client.stream.state import Exchange, StreamState
from qwen3guard_client.transport import calls, threads
from qwen3guard_client.transport.calls import Call
from qwen3guard_client.transport.retries import Pauses


class Stream:
    """One moderated response: a context manager that opens and ends the session.

    `step` takes text in any pieces, or token ids of the guard's tokenizer. `next_turn` goes on with the user's next
    turn and the response to it. Every error is a GuardError.
    """

    def __init__(
        self,
        send: Callable[[Call[StepResult], float], StepResult],
        state: StreamState,
        timeout_s: float,
        in_flight: threads.InFlight,
    ) -> None:
        self._send = send
        self._state = state
        self._timeout_s = timeout_s
        self._in_flight = in_flight

    @property
    def session(self) -> str:
        """The id by which the server knows the stream now. A replay makes another."""
        return self._state.session

    @property
    def prompt_verdict(self) -> PromptVerdict:
        """The verdict on the prompt. Raises InternalError before the stream is entered."""
        if self._state.prompt_verdict is None:
            raise InternalError("The stream has no prompt verdict yet.")
        return self._state.prompt_verdict

    @property
    def verdicts(self) -> tuple[TokenVerdict, ...]:
        """The verdict of every response token so far."""
        return tuple(self._state.verdicts)

    @property
    def final_verdicts(self) -> tuple[TokenVerdict, ...]:
        """The verdicts that later text cannot change. Only those of the last few characters are missing."""
        return tuple(self._state.final_verdicts())

    @property
    def notice(self) -> str:
        """The server's notice about the guard, which demo weights have, or an empty string."""
        return self._state.notice

    def flagged(self, *, strict: bool | None = True) -> TokenVerdict | None:
        """The first token whose debounced decision is unsafe in strict or in loose mode, or None.

        With `strict=None`, the session's own policy decides: its mode, or its thresholds.
        """
        return self._state.flagged(strict=strict)

    def __enter__(self) -> Stream:
        self._run(self._state.open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state.is_open:
            # If the body has failed, its error is the one to raise: the server forgets the stream in time anyway.
            with contextlib.suppress(*([GuardError] if kind else [])):
                self.finish()

    def step(self, piece: Piece) -> StepResult:
        """Judges the next piece. The result has the tokens of earlier pieces again that were not final.

        If the server has lost the session (by a restart, a time-out or another replica), it is replayed under a new id,
        again and again within the stream's time-out where the server has no room for it yet.
        """
        return self._run(self._state.step(piece))

    def next_turn(self, prompt: str) -> PromptVerdict:
        """Judges the user's next turn after the response that stands. What is written then is the response to it.

        `verdicts` begins anew: read those of the former response before. The server computes the new tokens alone.
        Its verdicts may differ from those of a new stream with the whole conversation, in which a past response stands
        without its empty think block. The conversation must fit into the context; TextTooLong changes nothing.
        """
        self._run(self._state.next_turn(prompt))
        return self.prompt_verdict

    def finish(self) -> StepResult:
        """Ends the stream: the last tokens become final, and the server frees the session."""
        return self._run(self._state.finish())

    def _run(self, exchange: Exchange) -> StepResult:
        deadline = time.monotonic() + self._timeout_s
        pauses = Pauses()
        try:
            call = next(exchange)
            while True:
                try:
                    result = self._make(call, deadline - time.monotonic())
                except SessionLost as lost:
                    call = exchange.throw(lost)
                except Overloaded as full:
                    reopens = call.start and call.replay
                    pause_s = pauses.next_s(deadline - time.monotonic()) if reopens else None
                    if pause_s is None:
                        raise
                    threads.sleep(pause_s)
                    call = exchange.throw(full)
                else:
                    call = exchange.send(result)
        except StopIteration as done:
            return cast(StepResult, done.value)

    def _make(self, call: Call[StepResult], within_s: float) -> StepResult:
        """Sends a call. One that opens or ends a session is completed even if the caller is cancelled meanwhile.

        A session that is opened for nobody, or perhaps not at all, is ended then: the server would keep it, and Triton
        its sequence, until it is idle for too long.
        """
        if call.start:
            end = calls.stream_step(call.session, text="", end=True)
            return self._in_flight.complete(
                lambda: self._send(call, within_s), lambda: self._send(end, self._timeout_s)
            )
        if call.end:
            return self._in_flight.complete(lambda: self._send(call, within_s))
        return self._send(call, within_s)
