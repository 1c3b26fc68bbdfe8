"""Where one moderated response stands: its session, position, and the text whose tokens are not final yet.

Pure state, shared by the sync and the async stream. What takes several calls is written once, as a generator
that yields calls and is sent their results, or thrown their errors.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator, Sequence

from qwen3guard_client import calls
from qwen3guard_client.calls import Call, Messages
from qwen3guard_client.errors import EmptyText, InvalidRequest, SessionLost
from qwen3guard_client.verdict import PromptVerdict, StepResult, TokenVerdict

Piece = str | Sequence[int]
"""What an LLM writes: text in any pieces, or ids of the guard's own tokenizer."""
Exchange = Generator[Call[StepResult], StepResult, StepResult]
"""Calls to make, one after the other; returns the result that counts."""


class StreamState:
    """The session id is made here and never used again: a lost session is replayed under a new one."""

    def __init__(self, prompt: str | None, messages: Messages | str | None) -> None:
        self._prompt = prompt
        self._messages = messages
        self._written: list[str | list[int]] = []
        """All of the response so far; neighbouring texts are one."""
        self.is_open = False
        self.prompt_verdict: PromptVerdict | None = None
        self.verdicts: list[TokenVerdict] = []
        self.notice = ""

    def open(self) -> Exchange:
        """Opens a new session for the conversation, with nothing of the response yet."""
        self._session = str(uuid.uuid4())
        self._text = ""
        result = yield calls.stream_step(self._session, prompt=self._prompt, messages=self._messages, start=True)
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
        try:
            result = yield from self._append(piece)
        except SessionLost:
            yield from self._replay()
            result = yield from self._append(piece)
        if isinstance(piece, str) and self._written and isinstance(self._written[-1], str):
            self._written[-1] += piece
        else:
            self._written.append(piece if isinstance(piece, str) else list(piece))
        return result

    def finish(self) -> Exchange:
        """The last step: what was provisional becomes final, and the server forgets the session."""
        self.is_open = False
        try:
            result = yield self._end()
        except SessionLost:
            yield from self._replay()
            self.is_open = False
            result = yield self._end()
        self._take(result, self._position)
        return result

    def _append(self, piece: Piece) -> Exchange:
        if isinstance(piece, str):
            text, position = self._text + piece, self._position
            result = yield calls.stream_step(self._session, text=text, position=position)
            self._text = text[result.final_characters :]
            self._position += result.final_tokens
        else:
            position = self._length
            result = yield calls.stream_step(self._session, token_ids=piece, position=position)
            self._text = ""
            self._position = result.length
        self._take(result, position)
        return result

    def _replay(self) -> Generator[Call[StepResult], StepResult, None]:
        """Opens the stream again under another session and writes everything that the lost one held."""
        yield from self.open()
        for piece in self._written:
            yield from self._append(piece)

    def _end(self) -> Call[StepResult]:
        return calls.stream_step(self._session, text=self._text, position=self._position, end=True)

    def _take(self, result: StepResult, position: int) -> None:
        while self.verdicts and self.verdicts[-1].position >= position:
            self.verdicts.pop()
        self.verdicts += result.tokens
        self._length = result.length

    def flagged(self, *, strict: bool = True) -> TokenVerdict | None:
        """The first token whose debounced decision is unsafe, or None."""
        return next((token for token in self.verdicts if (token.strict if strict else token.loose)), None)
