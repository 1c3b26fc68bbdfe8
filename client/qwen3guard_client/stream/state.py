"""Where one moderated response stands: its session, position, and the text whose tokens are not final yet.

Pure state. What takes several calls is a generator that yields calls and is sent their results, or is thrown their
errors.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from qwen3guard_contract.errors import EmptyText, InvalidRequest, SessionLost
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.verdict import PromptVerdict, StepResult, TokenVerdict

from qwen3guard_client.transport import calls
from qwen3guard_client.transport.calls import Call, Messages

Piece = str | Sequence[int]
"""What an LLM writes: text in any pieces, or ids of the guard's own tokenizer."""
Exchange = Generator[Call[StepResult], StepResult, StepResult]
"""Calls to make, one after the other; returns the result that counts."""
REPLAYS = 5
"""Of one step; a session that is lost as often is not lost by accident."""


class StreamState:
    """The session id is made here and never used again: a lost session is replayed under a new one."""

    def __init__(self, prompt: str | None, messages: Messages | str | None, policy: Policy | None) -> None:
        self.session = ""
        self._prompt = prompt
        self._messages = messages
        self._policy = policy
        self._written: list[str | list[int]] = []
        """All of the response so far; neighbouring texts are one."""
        self.is_open = False
        self._is_lost = False
        self.prompt_verdict: PromptVerdict | None = None
        self.verdicts: list[TokenVerdict] = []
        self.notice = ""

    def open(self) -> Exchange:
        """Opens a new session for the conversation, with nothing of the response yet."""
        self.session = str(uuid.uuid4())
        self._text = ""
        self._offset: int | None = 0
        """Where `_text` begins in the response, in characters; None once token ids were written."""
        result = yield calls.stream_step(
            self.session, prompt=self._prompt, messages=self._messages, policy=self._policy, start=True
        )
        self.is_open = True
        self.prompt_verdict = result.prompt_verdict
        self.notice = result.notice
        self._position = self._length = result.length
        return result

    def step(self, piece: Piece) -> Exchange:
        """Raises EmptyText for an empty piece, InvalidRequest on a stream that is not open."""
        if not self.is_open:
            raise InvalidRequest("The stream is not open.")
        if not len(piece):
            raise EmptyText("The piece is empty.")
        result = yield from self._replaying(lambda: self._append(piece))
        if isinstance(piece, str) and self._written and isinstance(self._written[-1], str):
            self._written[-1] += piece
        else:
            self._written.append(piece if isinstance(piece, str) else list(piece))
        return result

    def finish(self) -> Exchange:
        """The last step: what was provisional becomes final, and the server forgets the session."""
        self.is_open = False
        try:
            return (yield from self._replaying(self._end))
        finally:
            self.is_open = False

    def _replaying(self, exchange: Callable[[], Exchange]) -> Exchange:
        """Opens the stream again where the session is lost, under another id, and writes all that it held."""
        for _ in range(REPLAYS):
            try:
                if self._is_lost:
                    yield from self.open()
                    for piece in self._written:
                        yield from self._append(piece)
                    self._is_lost = False
                return (yield from exchange())
            except SessionLost:
                self._is_lost = True
        raise SessionLost(f"The server has lost the stream {REPLAYS} times in a row.")

    def _append(self, piece: Piece) -> Exchange:
        if isinstance(piece, str):
            text, position, offset = self._text + piece, self._position, self._offset
            result = yield calls.stream_step(self.session, text=text, position=position)
            self._text = text[result.final_characters :]
            self._position += result.final_tokens
            if self._offset is not None:
                self._offset += result.final_characters
        else:
            position, offset = self._length, None
            result = yield calls.stream_step(self.session, token_ids=piece, position=position)
            self._text = ""
            self._position = result.length
            self._offset = None
        return self._take(result, position, offset)

    def _end(self) -> Exchange:
        result = yield calls.stream_step(self.session, text=self._text, position=self._position, end=True)
        return self._take(result, self._position, self._offset)

    def _take(self, result: StepResult, position: int, offset: int | None) -> StepResult:
        """Keeps the verdicts from `position` on; their ends count from the response's beginning."""
        ends = [None if offset is None or token.end is None else offset + token.end for token in result.tokens]
        tokens = tuple(replace(token, end=end) for token, end in zip(result.tokens, ends, strict=True))
        while self.verdicts and self.verdicts[-1].position >= position:
            self.verdicts.pop()
        self.verdicts += tokens
        self._length = result.length
        return replace(result, tokens=tokens, notice=self.notice)

    def final_verdicts(self) -> list[TokenVerdict]:
        """Verdicts of the tokens that later text cannot change; all of them once the stream is finished."""
        return [token for token in self.verdicts if not self.is_open or token.position < self._position]

    def flagged(self, *, strict: bool | None) -> TokenVerdict | None:
        """The first token that is flagged in strict or in loose mode, or by the session's own policy."""
        name = "flag" if strict is None else "strict" if strict else "loose"
        return next((token for token in self.verdicts if getattr(token, name)), None)
