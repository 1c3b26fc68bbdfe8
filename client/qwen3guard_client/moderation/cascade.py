"""A cascade: if Stream flags, Gen reads the conversation so far, and its answer counts.

This module is pure state, which a Flow holds. A decision that needs Gen is a generator: it yields each call, and its
driver sends the result back or throws UnreadableAnswer.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Literal, TypeVar, get_args

from qwen3guard_contract.errors import InvalidRequest, UnreadableAnswer
from qwen3guard_contract.labels import AnswerStatus
from qwen3guard_contract.verdict import Classification, PromptVerdict, TokenVerdict

from qwen3guard_client.arguments import Context, Piece, checked_choice
from qwen3guard_client.transport import calls
from qwen3guard_client.transport.calls import Call, Messages

Confirm = Literal["strict", "loose"]
T = TypeVar("T")
Asking = Generator[Call[Classification], Classification, T]


class Cascade:
    """A flag stands unless Gen finds the conversation safe in the mode `confirm`.

    Gen is asked once for the prompt, and once for each unsafe run of the response that becomes a flag. It reads the
    response up to the end of the flagged token, whatever else is written by then: its answer must not depend on how
    fast the LLM writes. The tokens of a run that it overrules lose their flag and their run. Raises InvalidRequest for
    an unknown mode.
    """

    def __init__(
        self, confirm: Confirm, prompt: str | None, messages: Messages | str | None, context: Context = "whole"
    ) -> None:
        checked_choice(confirm, get_args(Confirm))
        self._context: Context = context
        self._confirm = confirm
        self._prompt = prompt
        self._messages = messages
        self._response = ""
        self._stands: bool | None = None
        """Whether the flag of the current run stands. None before Gen has answered."""
        self.asked = 0
        self.overruled = 0

    def wrote(self, piece: Piece) -> None:
        """Appends a piece to the response that Gen reads. Raises InvalidRequest for token ids."""
        if not isinstance(piece, str):
            raise InvalidRequest("Gen confirms text alone: moderate token ids without `confirm`.")
        self._response += piece

    def prompt(self, verdict: PromptVerdict) -> Asking[PromptVerdict]:
        """Decides whether a flag of the prompt stands."""
        if not verdict.flag:
            return verdict
        stands = yield from self._ask(calls.classify(self._prompt, None, self._messages, self._context))
        return replace(verdict, flag=stands)

    def tokens(self, tokens: Sequence[TokenVerdict]) -> Asking[list[TokenVerdict]]:
        """Decides which flags stand. `tokens` are the next final tokens of the response, each given once, in order."""
        decided = []
        for token in tokens:
            if token.run <= 1:
                self._stands = None
            if token.flag and self._stands is None:
                self._stands = yield from self._ask(self._conversation(self._response[: token.end]))
            decided.append(replace(token, flag=False, run=0) if self._stands is False else token)
        return decided

    def _conversation(self, response: str) -> Call[Classification]:
        if self._messages is None:
            return calls.classify(self._prompt, response, None, self._context)
        messages = json.loads(self._messages) if isinstance(self._messages, str) else list(self._messages)
        return calls.classify(None, None, [*messages, {"role": "assistant", "content": response}], self._context)

    def _ask(self, call: Call[Classification]) -> Asking[bool]:
        self.asked += 1
        try:
            classification = yield call
        except UnreadableAnswer:  # it does not say that the conversation is safe
            return True
        unsafe = classification.strict if self._confirm == "strict" else classification.loose
        stands = unsafe or classification.answer_status is not AnswerStatus.COMPLETE
        self.overruled += not stands
        return stands
