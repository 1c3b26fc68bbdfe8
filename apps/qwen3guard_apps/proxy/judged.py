"""One choice of an answer: its text goes in as the LLM writes it, and the guard tells how much of it may be shown."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from qwen3guard_client import (
    AsyncGuardClient,
    AsyncStream,
    Flag,
    GuardError,
    InputError,
    PromptVerdict,
    Segment,
    TokenVerdict,
)
from qwen3guard_client.moderation.gate import Gate
from qwen3guard_contract.errors import InternalError

from qwen3guard_apps.openai.conversation import Conversation
from qwen3guard_apps.proxy.settings import Settings

Verdict = dict[str, Any]


class Judged:
    """`changed` is set whenever there is something new to know. `leave` must be called; the session ends behind it."""

    def __init__(
        self, guard: AsyncGuardClient, settings: Settings, conversation: Conversation, changed: asyncio.Event
    ) -> None:
        self._stream = guard.stream(
            messages=conversation.messages, policy=settings.policy, timeout_s=settings.guard_timeout_s
        )
        self._settings = settings
        self._gate = Gate(settings.release, "mark" if settings.on_flag == "mark" else "stop")
        self._changed = changed
        self._news = asyncio.Event()
        self._unchecked: list[str] = []
        self._closed = False
        self._cleared = 0
        self._prompt: PromptVerdict | None = None
        self._begun = len(conversation.begun)
        self.length = 0
        """Characters of the answer so far, with those that the request began itself."""
        self.done = False
        """All was judged."""
        self.error: GuardError | None = None
        self.write(conversation.begun)

    def start(self, running: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(self._check())
        running.add(task)
        task.add_done_callback(running.discard)

    def write(self, text: str) -> None:
        if text:
            self.length += len(text)
            self._unchecked.append(text)
            self._show(self._gate.wrote(text))
            self._news.set()

    def close(self) -> None:
        """Nothing more is written."""
        self._closed = True
        self._news.set()

    def leave(self) -> None:
        """Nobody wants to know any more."""
        self._unchecked.clear()
        self.close()

    @property
    def flag(self) -> Flag | None:
        return self._gate.flag

    @property
    def stopped(self) -> bool:
        return self._gate.stopped

    @property
    def limit(self) -> int:
        """Where the flag stands, in the characters of `length`."""
        return self.flag.offset if self.flag else self.length

    @property
    def unguarded(self) -> bool:
        """The guard failed, and its operator lets pass what it cannot judge.

        What the guard fails at because of the text itself is never let pass: too long a one, or one for which the
        model's numbers are not finite.
        """
        lets = self._settings.on_guard_error == "pass"
        return lets and self.error is not None and not isinstance(self.error, InputError | InternalError)

    @property
    def failed(self) -> bool:
        return self.error is not None and not self.unguarded and not self.stopped

    @property
    def begins(self) -> bool:
        """Whether anything may be shown: the prompt was judged."""
        return self._prompt is not None or self.unguarded or self._settings.release == "before_check"

    def releases(self, end: int) -> bool:
        return self.unguarded or (self.begins and self._cleared >= end)

    @property
    def final(self) -> bool:
        return self.done or self.unguarded

    def verdict(self) -> Verdict:
        """The documented field `guard`."""
        if self.unguarded and not self.flag:
            return {"checked": False, "flagged": False, "flagged_by": None} | dict.fromkeys(
                ("severity", "categories", "strict", "loose", "position")
            )
        judgements: list[PromptVerdict | TokenVerdict] = [*self._stream.verdicts]
        if self._prompt and self._prompt_counts:
            judgements.insert(0, self._prompt)
        found = self.flag.verdict if self.flag else next((each for each in judgements if each.strict), None)
        return {
            "checked": not self.unguarded,
            "flagged": self.flag is not None,
            "flagged_by": None if self.flag is None else "prompt" if self.flag.in_prompt else "response",
            "severity": found.severity.value if found else "Safe",
            "categories": [found.category.value] if found and found.category else [],
            "strict": any(each.strict for each in judgements),
            "loose": any(each.loose for each in judgements),
            "position": max(0, self.flag.offset - self._begun) if self.flag else None,
        }

    @property
    def _prompt_counts(self) -> bool:
        return self._settings.prompt_check != "off"

    def _show(self, segments: Iterable[Segment]) -> None:
        self._cleared += sum(len(segment.content) for segment in segments)

    async def _check(self) -> None:
        try:
            await self._judge(self._stream)
        except GuardError as error:
            self.error = error
        except Exception as error:
            self.error = InternalError(f"The guard's client failed ({type(error).__name__}).")
        finally:
            self._changed.set()

    async def _judge(self, stream: AsyncStream) -> None:
        seen = 0
        async with stream:
            self._prompt = stream.prompt_verdict
            if self._prompt_counts:
                self._gate.prompt_judged(self._prompt)
            self._changed.set()
            while not self.stopped and (text := await self._next()):
                await stream.step(text)
                final = stream.final_verdicts
                self._show(self._gate.judged(final[seen:]))
                seen = len(final)
                self._changed.set()
        if not self.stopped:
            self._show(self._gate.judged(stream.verdicts[seen:]))
        if not self.stopped:
            self._show(self._gate.finished())
        self.done = True

    async def _next(self) -> str:
        """All that was written since the last check; empty at the end."""
        while not self._unchecked and not self._closed:
            self._news.clear()
            await self._news.wait()
        text = "".join(self._unchecked)
        self._unchecked.clear()
        return text
