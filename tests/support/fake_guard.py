"""Both guards without a server: a double at the clients' `send`, which judges a text by a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from qwen3guard_client import (
    AsyncStream,
    Category,
    Classification,
    PromptVerdict,
    RiskLevel,
    StepResult,
    Stream,
    TokenVerdict,
)
from qwen3guard_client.stream.state import StreamState
from qwen3guard_client.transport import tasks, threads
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import wire
from qwen3guard_contract.errors import SessionLost, UnreadableAnswer
from qwen3guard_contract.labels import AnswerStatus
from qwen3guard_contract.policy import runs

MESSAGES = [{"role": "user", "content": "Hello."}]
PROMPT_TOKENS = 3
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Script:
    """What an LLM writes, and what the guards say of it.

    `tokens` has the text and the risk of each token. `answers` are Gen's, each to a response of as many
    characters as its place (0 is the prompt), and then over again: whether all is unsafe, or None for an answer that
    cannot be read. Calls of Stream whose number is in `lost` find no session.
    """

    tokens: tuple[tuple[str, bool], ...]
    debounce: int = 2
    unsafe_prompt: bool = False
    answers: tuple[bool | None, ...] = ()
    lost: frozenset[int] = frozenset()

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.tokens)

    @property
    def ends(self) -> list[int]:
        return list(accumulate(len(text) for text, _ in self.tokens))

    def answer(self, characters: int) -> bool | None:
        """Gen's, to so much of the response."""
        return self.answers[characters % len(self.answers)]

    @property
    def runs(self) -> list[int]:
        return runs(risky for _, risky in self.tokens)


@dataclass
class FakeGuard:
    """`failure` is raised in the place of the call with the number `fails_at`, of both guards together."""

    script: Script
    failure: BaseException | None = None
    fails_at: int = 0
    sessions: set[int | str] = field(default_factory=set)
    calls: int = 0
    steps: int = 0
    questions: list[str | None] = field(default_factory=list)
    """The response as far as it went, at each question to Gen; None for a prompt."""

    def answer(self, call: Call[Any]) -> Any:
        number = self.calls
        self.calls += 1
        if self.failure and number == self.fails_at:
            raise self.failure
        return self._classify(call) if call.model is wire.CLASSIFY else self._step(call)

    def send(self, call: Call[Any], _: float | None = None) -> Any:
        return self.answer(call)

    async def asend(self, call: Call[Any], _: float | None = None) -> Any:
        await asyncio.sleep(0)
        return self.answer(call)

    def stream(self) -> Stream:
        return Stream(self.send, StreamState(None, MESSAGES, None), TIMEOUT_S, threads.InFlight(lambda: None))

    def async_stream(self) -> AsyncStream:
        return AsyncStream(self.asend, StreamState(None, MESSAGES, None), TIMEOUT_S, tasks.InFlight(lambda: None))

    def _classify(self, call: Call[Any]) -> Classification:
        messages = json.loads(call.values[wire.MESSAGES][0])
        assert messages[:1] == MESSAGES
        response = messages[1]["content"] if messages[1:] else None
        assert response is None or self.script.text.startswith(response)
        unsafe = self.script.answer(len(response or ""))
        self.questions.append(response)
        if unsafe is None:
            raise UnreadableAnswer("The model's answer cannot be read as a verdict.")
        return Classification(
            _label(unsafe)[0], (), None, {}, {}, {}, unsafe, unsafe, unsafe, "", "", AnswerStatus.COMPLETE
        )

    def _step(self, call: Call[Any]) -> StepResult:
        if call.start:
            self.sessions.add(call.session)
            flag = self.script.unsafe_prompt
            verdict = PromptVerdict(*_label(flag), {}, {}, flag, flag, flag)
            return StepResult((), PROMPT_TOKENS, 0, 0, verdict, "")
        self.steps += 1
        if self.steps in self.script.lost:
            self.sessions.clear()
        if call.session not in self.sessions:
            raise SessionLost("The server does not know the session.")
        if call.end:
            self.sessions.discard(call.session)
        text = call.values[wire.TEXT][0].decode()
        first = call.values[wire.POSITION][0] - PROMPT_TOKENS
        tokens = self._tokens(first, text, end=call.end)
        final = len(tokens) if call.end else max(0, len(tokens) - 1)
        characters = tokens[final - 1].end if final else 0
        return StepResult(tuple(tokens), PROMPT_TOKENS + first + len(tokens), final, characters or 0, None, "")

    def _tokens(self, first: int, text: str, *, end: bool) -> list[TokenVerdict]:
        """Of a text that begins with token `first`. A token that is cut off is judged wrongly, until the end."""
        tokens: list[TokenVerdict] = []
        at = 0
        for number in range(first, len(self.script.tokens)):
            if at == len(text):
                break
            whole, run = self.script.tokens[number][0], self.script.runs[number]
            if len(text) - at < len(whole) and not end:
                run = 0 if run else self.script.debounce
            at = min(len(text), at + len(whole))
            flag = run >= self.script.debounce
            tokens.append(TokenVerdict(PROMPT_TOKENS + number, *_label(flag), {}, {}, flag, flag, flag, run, at))
        return tokens


def _label(unsafe: bool) -> tuple[RiskLevel, Category | None]:
    return (RiskLevel.UNSAFE, Category.VIOLENT) if unsafe else (RiskLevel.SAFE, None)


@dataclass(frozen=True)
class Outcome:
    """What must come of a script after the check, however its text is cut: by the rules alone, over the whole text."""

    clear: str
    marked: str
    offset: int | None
    """Where the flag stands."""
    asked: int
    """Questions to Gen, where nothing stops the response."""


def outcome(script: Script, on_flag: str, *, confirm: bool, prompt_counts: bool = True) -> Outcome:
    asked, offset = 0, None

    def stands(end: int) -> bool:
        nonlocal asked
        if not confirm:
            return True
        asked += 1
        return script.answer(end) is not False

    if script.unsafe_prompt and prompt_counts and stands(0):
        offset = 0
    decided = None
    for number, run in enumerate(script.runs):
        if run <= 1:
            decided = None
        if run >= script.debounce and decided is None:
            decided = stands(script.ends[number])
            if decided and offset is None:
                begin = number - run + 1
                offset = script.ends[begin - 1] if begin else 0
    text = script.text
    if offset is None:
        return Outcome(text, "", None, asked)
    return Outcome(text[:offset], text[offset:] if on_flag == "mark" else "", offset, asked)


def pieces_of(text: str, cuts: Sequence[int]) -> list[str]:
    """The text in pieces of these lengths, the rest in one."""
    ends = [0, *(end for end in accumulate(cuts) if end < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(ends) if start < end]
