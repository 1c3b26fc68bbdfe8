"""The state of one moderated response, and of those before it in the same session: the session, the position, and the
text whose tokens are not final yet.

This module makes no calls. An operation is a generator: it yields each call, and its driver sends the result back or
throws the error.
"""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Callable, Generator
from dataclasses import replace
from operator import attrgetter

from qwen3guard_contract.errors import EmptyText, InvalidRequest, Overloaded, SessionLost
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.verdict import PromptVerdict, StepResult, TokenVerdict

from qwen3guard_client.arguments import Context, Piece, checked_flag, checked_piece, checked_text
from qwen3guard_client.surrogates import REPLACEMENT, join_surrogates
from qwen3guard_client.transport import calls
from qwen3guard_client.transport.calls import Call, Messages

Exchange = Generator[Call[StepResult], StepResult, StepResult]
"""The calls to make, one after the other. It returns the result for the caller."""
REPLAYS = 5
"""The most replays of one step. A session that is lost this often has a lasting cause."""


class StreamState:
    """The response of the last turn. Each session id is made here and used once: a lost session is replayed under a new
    id."""

    def __init__(
        self,
        prompt: str | None,
        messages: Messages | str | None,
        policy: Policy | None,
        context: Context = "whole",
    ) -> None:
        self.session = ""
        self._prompt = prompt
        self._messages = messages
        self._policy = policy
        self._context = context
        self._past: list[tuple[list[str | list[int]], str]] = []
        """The responses of former turns, each with the user's turn after it."""
        self._written: list[str | list[int]] = []
        """All of the response so far. Neighbouring texts are joined."""
        self._text = ""
        """The end of the response whose tokens are not final yet."""
        self._half = ""
        """Half of a surrogate pair with which the response ends, and which is not in `_text`."""
        self._offset: int | None = 0
        """Where `_text` begins in the response, in characters. None after token ids were written."""
        self._position = 0
        """Where the tokens of `_text` begin in the session."""
        self._length = 0
        """The number of tokens in the session."""
        self.is_open = False
        """Whether the caller may step: from `open` to `finish`, also while a lost session is replayed."""
        self._is_lost = False
        """From the loss of the session until it is replayed."""
        self.prompt_verdict: PromptVerdict | None = None
        self.verdicts: list[TokenVerdict] = []
        self.notice = ""

    def open(self) -> Exchange:
        """Opens a session for the conversation, with nothing of the response yet."""
        result = yield from self._open()
        self.is_open = True
        return result

    def _open(self) -> Exchange:
        self.session = str(uuid.uuid4())
        result = yield calls.stream_step(
            self.session,
            prompt=self._prompt,
            messages=self._messages,
            policy=self._policy,
            context=self._context,
            start=True,
            replay=self._is_lost,
        )
        self.notice = result.notice
        self._begin_response(result)
        return result

    def step(self, piece: Piece) -> Exchange:
        """Judges the next piece. Raises EmptyText for an empty piece.

        Half of a surrogate pair at the end of a text is judged with the next piece, which brings the other half. Raises
        InvalidRequest for a piece of another type, and if the stream is not open.
        """
        if not self.is_open:
            raise InvalidRequest("The stream is not open.")
        piece = checked_piece(piece)
        if not len(piece):
            raise EmptyText("The piece is empty.")
        half = self._half
        if isinstance(piece, str):
            piece, half = join_surrogates(half, piece)
        elif half:
            yield from self._write(REPLACEMENT)
            half = self._half = ""
        if len(piece):
            result = yield from self._write(piece)
        else:
            result = StepResult((), self._length, 0, 0, None, self.notice)
        self._half = half
        return result

    def _write(self, piece: str | list[int]) -> Exchange:
        result = yield from self._replaying(lambda: self._append(piece))
        self._keep(piece)
        return result

    def _keep(self, piece: str | list[int]) -> None:
        if isinstance(piece, str) and self._written and isinstance(self._written[-1], str):
            self._written[-1] += piece
        else:
            self._written.append(piece)

    def next_turn(self, prompt: str) -> Exchange:
        """Ends the response, and judges the user's next turn in the same session. What is written after it is the
        response to it. Raises InvalidRequest if the stream is not open."""
        if not self.is_open:
            raise InvalidRequest("The stream is not open.")
        checked_text(prompt, "The prompt")
        if self._half:
            yield from self._write(REPLACEMENT)
            self._half = ""
        result = yield from self._replaying(lambda: self._open_turn(prompt))
        self._past.append((self._written, prompt))
        self._written = []
        return result

    def _open_turn(self, prompt: str) -> Exchange:
        result = yield calls.stream_step(self.session, prompt=prompt, position=self._length, replay=self._is_lost)
        self._begin_response(result)
        return result

    def _begin_response(self, result: StepResult) -> None:
        self._text = ""
        self._offset = 0
        self._position = self._length = result.length
        self.prompt_verdict = result.prompt_verdict
        self.verdicts = []

    def finish(self) -> Exchange:
        """Takes the last step: provisional tokens become final, and the server forgets the session.

        It may be called again after an error. Raises InvalidRequest on a stream that was never open.
        """
        if not self.session:
            raise InvalidRequest("The stream is not open.")
        self.is_open = False
        if self._half:
            self._half = ""
            self._text += REPLACEMENT
            self._keep(REPLACEMENT)
        return (yield from self._replaying(self._end))

    def _replaying(self, exchange: Callable[[], Exchange]) -> Exchange:
        """Runs `exchange`. If the session is lost, opens another one first, and writes everything to it again.

        A driver may throw Overloaded for a call that opens a session again: it is tried once more, in another.
        """
        lost = 0
        while lost < REPLAYS:
            try:
                if self._is_lost:
                    yield from self._replay()
                return (yield from exchange())
            except SessionLost:
                lost += 1
                self._is_lost = True
            except Overloaded:
                if not self._is_lost:
                    raise
        raise SessionLost(f"The server has lost the stream {REPLAYS} times in a row.")

    def _replay(self) -> Generator[Call[StepResult], StepResult]:
        """Writes everything to a new session. What the caller sees stays as it is if that fails."""
        shown = self.prompt_verdict, self.verdicts, self._position
        try:
            yield from self._open()
            for response, prompt in self._past:
                yield from self._append_all(response)
                yield from self._open_turn(prompt)
            yield from self._append_all(self._written)
        except BaseException:  # a caller may be cancelled
            self.prompt_verdict, self.verdicts, self._position = shown
            raise
        self._is_lost = False

    def _append_all(self, pieces: list[str | list[int]]) -> Generator[Call[StepResult], StepResult]:
        for piece in pieces:
            yield from self._append(piece)

    def _append(self, piece: str | list[int]) -> Exchange:
        if isinstance(piece, str):
            text, position, offset = self._text + piece, self._position, self._offset
            result = yield calls.stream_step(self.session, text=text, position=position, replay=self._is_lost)
            self._text = text[result.final_characters :]
            self._position += result.final_tokens
            if self._offset is not None:
                self._offset += result.final_characters
        else:
            position, offset = self._length, None
            result = yield calls.stream_step(self.session, token_ids=piece, position=position, replay=self._is_lost)
            self._text = ""
            self._position = result.length
            self._offset = None
        return self._take(result, position, offset)

    def _end(self) -> Exchange:
        result = yield calls.stream_step(self.session, text=self._text, position=self._position, end=True)
        return self._take(result, self._position, self._offset)

    def _take(self, result: StepResult, position: int, offset: int | None) -> StepResult:
        """Replaces the verdicts from `position` on. Their ends are counted from the beginning of the response."""
        ends = [None if offset is None or token.end is None else offset + token.end for token in result.tokens]
        tokens = tuple(replace(token, end=end) for token, end in zip(result.tokens, ends, strict=True))
        while self.verdicts and self.verdicts[-1].position >= position:
            self.verdicts.pop()
        self.verdicts += tokens
        self._length = result.length
        return replace(result, tokens=tokens, notice=self.notice)

    def final_verdicts(self) -> list[TokenVerdict]:
        """The verdicts that later text cannot change. After the stream is finished, these are all."""
        if not self.is_open:
            return self.verdicts.copy()
        return self.verdicts[: bisect_left(self.verdicts, self._position, key=attrgetter("position"))]

    def flagged(self, *, strict: bool | None) -> TokenVerdict | None:
        """The first token that is flagged in strict or in loose mode, or by the session's own policy (None)."""
        if strict is not None:
            strict = checked_flag(strict, "strict")
        name = "flag" if strict is None else "strict" if strict else "loose"
        return next((token for token in self.verdicts if getattr(token, name)), None)
