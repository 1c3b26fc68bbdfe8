# Generated from aio.py by client/generate_sync.py; do not edit.
"""One moderated response: what a caller steps through. Where it stands is in state.py."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import cast

from qwen3guard_contract.errors import GuardError, InternalError, SessionLost
from qwen3guard_contract.verdict import PromptVerdict, StepResult, TokenVerdict

from qwen3guard_client.stream.state import Exchange, Piece, StreamState
from qwen3guard_client.transport.calls import Call


class Stream:
    """One moderated response. `step` takes text in any pieces, or token ids of the guard's tokenizer."""

    def __init__(
        self, send: Callable[[Call[StepResult], float], StepResult], state: StreamState, timeout_s: float
    ) -> None:
        self._send = send
        self._state = state
        self._timeout_s = timeout_s

    @property
    def session(self) -> str:
        """The id under which the server knows the stream now; a replay makes another."""
        return self._state.session

    @property
    def prompt_verdict(self) -> PromptVerdict:
        """Raises InternalError before the stream is entered."""
        if self._state.prompt_verdict is None:
            raise InternalError("The stream has no prompt verdict yet.")
        return self._state.prompt_verdict

    @property
    def verdicts(self) -> tuple[TokenVerdict, ...]:
        """The verdict of every response token so far."""
        return tuple(self._state.verdicts)

    @property
    def final_verdicts(self) -> tuple[TokenVerdict, ...]:
        """The verdicts that later text cannot change: all but those of the last few characters."""
        return tuple(self._state.final_verdicts())

    @property
    def notice(self) -> str:
        return self._state.notice

    def flagged(self, *, strict: bool | None = True) -> TokenVerdict | None:
        """The first token whose debounced decision is unsafe in strict or in loose mode, or None.

        `strict` None is the session's own policy: its mode, or its thresholds.
        """
        return self._state.flagged(strict=strict)

    def __enter__(self) -> Stream:
        self._run(self._state.open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state.is_open:
            # Behind another error, a failure to end the stream is no news: the server forgets it in time.
            with contextlib.suppress(*([GuardError] if kind else [])):
                self.finish()

    def step(self, piece: Piece) -> StepResult:
        """Judges the next piece; tokens of earlier pieces that were not final come with it again.

        A session that the server has lost (a restart, a time-out, another replica) is replayed under a new id.
        """
        return self._run(self._state.step(piece))

    def finish(self) -> StepResult:
        """Ends the stream: judges what was still provisional, and frees the session on the server."""
        return self._run(self._state.finish())

    def _run(self, exchange: Exchange) -> StepResult:
        deadline = time.monotonic() + self._timeout_s
        try:
            call = next(exchange)
            while True:
                try:
                    result = self._send(call, deadline - time.monotonic())
                except SessionLost as lost:
                    call = exchange.throw(lost)
                else:
                    call = exchange.send(result)
        except StopIteration as done:
            return cast(StepResult, done.value)
