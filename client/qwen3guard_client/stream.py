"""Where one moderated response stands: its session, position, and the text whose tokens are not final yet.

Pure state, shared by the sync and the async stream: it makes calls and takes in their results.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from qwen3guard_client import calls
from qwen3guard_client.calls import Call, Messages
from qwen3guard_client.errors import EmptyText, InvalidRequest
from qwen3guard_client.verdict import PromptVerdict, StepResult, TokenVerdict

Piece = str | Sequence[int]
"""What an LLM writes: text in any pieces, or ids of the guard's own tokenizer."""


class StreamState:
    """The session id is made here, once, and never used again."""

    def __init__(self, prompt: str | None, messages: Messages | str | None) -> None:
        self._prompt = prompt
        self._messages = messages
        self._session = str(uuid.uuid4())
        self._position = 0
        self._length = 0
        self._text = ""
        self.open = False
        self.prompt_verdict: PromptVerdict | None = None
        self.verdicts: list[TokenVerdict] = []
        self.notice = ""

    def opening(self) -> Call[StepResult]:
        return calls.stream_step(self._session, prompt=self._prompt, messages=self._messages, start=True)

    def opened(self, result: StepResult) -> None:
        self.open = True
        self.prompt_verdict = result.prompt_verdict
        self.notice = result.notice
        self._position = self._length = result.length

    def stepping(self, piece: Piece) -> Call[StepResult]:
        """Raises EmptyText for an empty piece, InvalidRequest on a stream that is not open."""
        if not self.open:
            raise InvalidRequest("The stream is not open.")
        if not len(piece):
            raise EmptyText("The piece is empty.")
        if isinstance(piece, str):
            return calls.stream_step(self._session, text=self._text + piece, position=self._position)
        return calls.stream_step(self._session, token_ids=piece, position=self._length)

    def stepped(self, piece: Piece, result: StepResult) -> None:
        if isinstance(piece, str):
            self._text = (self._text + piece)[result.final_characters :]
            self._take(result, self._position)
            self._position += result.final_tokens
        else:
            self._text = ""
            self._take(result, self._length)
            self._position = result.length

    def finishing(self) -> Call[StepResult]:
        """The last step: what was provisional becomes final, and the server forgets the session."""
        self.open = False
        return calls.stream_step(self._session, text=self._text, position=self._position, end=True)

    def finished(self, result: StepResult) -> None:
        self._text = ""
        self._take(result, self._position)

    def _take(self, result: StepResult, position: int) -> None:
        while self.verdicts and self.verdicts[-1].position >= position:
            self.verdicts.pop()
        self.verdicts += result.tokens
        self._length = result.length

    def flagged(self, *, strict: bool = True) -> TokenVerdict | None:
        """The first token whose debounced decision is unsafe, or None."""
        return next((token for token in self.verdicts if (token.strict if strict else token.loose)), None)
