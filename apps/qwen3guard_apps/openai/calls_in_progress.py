"""The conversations of calls to an LLM, kept from each request until its answer has come, in the memory alone."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from qwen3guard_apps.openai.conversation import Conversation

MOST_CALLS = 1024
MOST_CHARACTERS = 2**24
"""The most text that is kept. What is oldest goes first."""
LONGEST_ID = 256
MESSAGE_CHARACTERS = 512
"""As much text as a message takes in memory beside its own."""


class CallsInProgress:
    """An id that two different conversations have had belongs to neither: clients may choose ids."""

    def __init__(self, most_calls: int = MOST_CALLS, most_characters: int = MOST_CHARACTERS) -> None:
        self._most_calls = most_calls
        self._most_characters = most_characters
        self._calls: OrderedDict[str, Conversation | None] = OrderedDict()
        self._characters = 0

    def begin(self, call: Any, conversation: Conversation) -> None:
        """A request with the id `call` has come; nothing happens if that is no id of at most LONGEST_ID characters."""
        if not isinstance(call, str) or not 0 < len(call) <= LONGEST_ID:
            return
        is_new = call not in self._calls
        former = self._calls.pop(call, None)
        self._characters -= _characters(former)
        kept = conversation if is_new or former == conversation else None
        self._calls[call] = kept
        self._characters += _characters(kept)
        while len(self._calls) > self._most_calls or self._characters > self._most_characters:
            _, oldest = self._calls.popitem(last=False)
            self._characters -= _characters(oldest)

    def forget(self, call: Any) -> None:
        """The request with the id `call` goes to no LLM."""
        if isinstance(call, str):
            self._characters -= _characters(self._calls.pop(call, None))

    def conversation(self, call: Any) -> Conversation | None:
        """The conversation of the request with the id `call`. None if it is not known."""
        return self._calls.get(call) if isinstance(call, str) else None


def _characters(conversation: Conversation | None) -> int:
    if conversation is None:
        return 0
    sizes = [MESSAGE_CHARACTERS + len(turn["content"]) for turn in conversation.messages]
    return sum(sizes) + len(conversation.begun)
