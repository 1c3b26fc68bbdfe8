"""One choice of an answer: its text goes in as the LLM writes it, and the guard tells how much of it may be shown."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from qwen3guard_client import AsyncGuardClient, Flag, GuardError, InputError, PromptVerdict, Segment, TokenVerdict
from qwen3guard_client.moderation.aio import AsyncFlowDriver
from qwen3guard_client.moderation.cascade import Cascade
from qwen3guard_client.moderation.flow import Flow
from qwen3guard_contract.errors import DeadlineExceeded, InternalError

from qwen3guard_apps.openai.conversation import Conversation
from qwen3guard_apps.proxy.settings import Settings

Verdict = dict[str, Any]
LONG = 2**14
"""A conversation of more characters, which itself may be what takes the guard so long."""
LATE = sys.maxsize
"""Where a text ends that is judged by `write_late`."""


class Judged:
    """`changed` is set after every event of the flow. `leave` must be called; the session ends after it."""

    def __init__(
        self, guard: AsyncGuardClient, settings: Settings, conversation: Conversation, changed: asyncio.Event
    ) -> None:
        self._again = partial(Judged, guard, settings, conversation, changed)
        self._late: list[Judged] = []
        self._keep: Callable[[asyncio.Task[None]], None] = lambda _: None
        self._is_long = sum(len(each["content"]) for each in conversation.messages) > LONG
        timeout_s = settings.guard_timeout_s
        self._stream = guard.stream(
            messages=conversation.messages, policy=settings.policy, context=settings.context, timeout_s=timeout_s
        )
        self._settings = settings
        self._flow = Flow(
            settings.release,
            "mark" if settings.on_flag == "mark" else "stop",
            Cascade(settings.confirm, None, conversation.messages, settings.context) if settings.confirm else None,
            prompt_counts=settings.prompt_check != "off",
        )
        self._driver = AsyncFlowDriver(
            self._flow, self._stream, lambda call: guard.send(call, timeout_s), self._count_cleared
        )
        self._changed = changed
        self._cleared = 0
        self._begun = len(conversation.begun)
        self.length = 0
        """Characters of the answer so far, with those that the request began itself."""
        self.write(conversation.begun)

    def start(self, keep: Callable[[asyncio.Task[None]], None]) -> None:
        """`keep` holds the task of the checks, which may outlive the request."""
        self._keep = keep
        keep(asyncio.create_task(self._driver.run()))

    def write(self, text: str) -> None:
        if text:
            self.length += len(text)
            self._driver.wrote(text)

    def write_late(self, texts: Sequence[str]) -> None:
        """Has each text judged as an answer of its own, before `close`. A flag in one of them stands after all that was
        written."""
        for text in texts:
            judged = self._again()
            self._late.append(judged)
            judged.start(self._keep)
            judged.write(text)
            judged.close()

    def close(self) -> None:
        """Nothing more is written."""
        self._driver.source_ended()

    def leave(self) -> None:
        """The request is over: no verdict is needed any more."""
        self._driver.abandon()
        for late in self._late:
            late.leave()

    @property
    def flag(self) -> Flag | None:
        return self._flow.flag or next((late.flag for late in self._late if late.flag), None)

    @property
    def stopped(self) -> bool:
        """Whether a flag ends the answer: all before it is judged."""
        return self._flow.stopped or (self._is_judged and any(late.stopped for late in self._late))

    @property
    def _is_judged(self) -> bool:
        """Whether all is, besides the texts of `write_late`."""
        return self._flow.finished or self._passes

    @property
    def limit(self) -> int:
        """Where the flag stands, in the characters of `length`."""
        return self._flow.flag.offset if self._flow.flag else self.length

    @property
    def error(self) -> GuardError | None:
        """The reason why the guard cannot judge, or None."""
        return self._own_error or next((late.error for late in self._late if late.error), None)

    @property
    def _own_error(self) -> GuardError | None:
        error = self._flow.error
        if error is None or isinstance(error, GuardError):
            return error
        return InternalError(f"The guard's client failed ({type(error).__name__}).")

    @property
    def unguarded(self) -> bool:
        """Whether the guard failed, and the operator lets a text pass that it cannot judge.

        If the guard fails because of the text itself, the text never passes: it is too long, perhaps for the time that
        the guard has, or the model's numbers for it are not finite. Nor does a text pass that Stream has flagged, if
        Gen fails to confirm the flag.
        """
        return self._passes or any(late.unguarded for late in self._late)

    @property
    def _passes(self) -> bool:
        if self._settings.on_guard_error == "block" or self._flow.unconfirmed:
            return False
        if self._is_long and isinstance(self._own_error, DeadlineExceeded):
            return False
        return self._own_error is not None and not isinstance(self._own_error, InputError | InternalError)

    @property
    def failed(self) -> bool:
        own = self._own_error is not None and not self._passes
        return own or any(late.failed for late in self._late)

    @property
    def begins(self) -> bool:
        """Whether anything may be shown: the prompt was judged."""
        judged = self._flow.prompt_verdict is not None
        return judged or self.unguarded or self._settings.release == "before_check"

    def releases(self, end: int) -> bool:
        if end == LATE:
            return bool(self._late) and self.final
        return self._passes or (self.begins and self._cleared >= end)

    @property
    def final(self) -> bool:
        """Whether everything is judged, or passes unjudged."""
        return self._is_judged and all(late.final for late in self._late)

    def verdict(self) -> Verdict:
        """The documented field `guard`."""
        flag = self.flag
        if self.unguarded and not flag:
            return {"checked": False, "flagged": False, "flagged_by": None} | dict.fromkeys(
                ("severity", "categories", "strict", "loose", "position")
            )
        judgements: list[PromptVerdict | TokenVerdict] = [*self._stream.verdicts]
        judgements += [verdict for late in self._late for verdict in late._stream.verdicts]
        if self._flow.prompt_verdict and self._settings.prompt_check != "off":
            judgements.insert(0, self._flow.prompt_verdict)
        worst = flag.verdict if flag else next((verdict for verdict in judgements if verdict.strict), None)
        left_out = self._flow.prompt_verdict.turns_left_out if self._flow.prompt_verdict else 0
        told = {"turns_left_out": left_out} if left_out else {}
        return told | {
            "checked": not self.unguarded,
            "flagged": flag is not None,
            "flagged_by": None if flag is None else "prompt" if flag.in_prompt else "response",
            "severity": worst.severity.value if worst else "Safe",
            "categories": [worst.category.value] if worst and worst.category else [],
            "strict": any(verdict.strict for verdict in judgements),
            "loose": any(verdict.loose for verdict in judgements),
            "position": max(0, self.limit - self._begun) if flag else None,
        }

    def _count_cleared(self, segments: Sequence[Segment]) -> None:
        self._cleared += sum(len(segment.content) for segment in segments)
        self._changed.set()
