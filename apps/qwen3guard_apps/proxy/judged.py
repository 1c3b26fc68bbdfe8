"""One choice of an answer: its text goes in as the LLM writes it, and the guard tells how much of it may be shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from qwen3guard_client import AsyncGuardClient, Flag, GuardError, InputError, PromptVerdict, Segment, TokenVerdict
from qwen3guard_client.moderation.aio import AsyncFlowDriver
from qwen3guard_client.moderation.cascade import Cascade
from qwen3guard_client.moderation.flow import Flow
from qwen3guard_contract.errors import InternalError

from qwen3guard_apps.openai.conversation import Conversation
from qwen3guard_apps.proxy.settings import Settings

Verdict = dict[str, Any]


class Judged:
    """`changed` is set after every event of the flow. `leave` must be called; the session ends after it."""

    def __init__(
        self, guard: AsyncGuardClient, settings: Settings, conversation: Conversation, changed: asyncio.Event
    ) -> None:
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
        keep(asyncio.create_task(self._driver.run()))

    def write(self, text: str) -> None:
        if text:
            self.length += len(text)
            self._driver.wrote(text)

    def close(self) -> None:
        """Nothing more is written."""
        self._driver.source_ended()

    def leave(self) -> None:
        """The request is over: no verdict is needed any more."""
        self._driver.abandon()

    @property
    def flag(self) -> Flag | None:
        return self._flow.flag

    @property
    def stopped(self) -> bool:
        return self._flow.stopped

    @property
    def limit(self) -> int:
        """Where the flag stands, in the characters of `length`."""
        return self.flag.offset if self.flag else self.length

    @property
    def error(self) -> GuardError | None:
        """The reason why the guard cannot judge, or None."""
        error = self._flow.error
        if error is None or isinstance(error, GuardError):
            return error
        return InternalError(f"The guard's client failed ({type(error).__name__}).")

    @property
    def unguarded(self) -> bool:
        """Whether the guard failed, and the operator lets a text pass that it cannot judge.

        If the guard fails because of the text itself, the text never passes: it is too long, or the model's numbers for
        it are not finite. Nor does a text pass that Stream has flagged, if Gen fails to confirm the flag.
        """
        if self._settings.on_guard_error == "block" or self._flow.unconfirmed:
            return False
        return self.error is not None and not isinstance(self.error, InputError | InternalError)

    @property
    def failed(self) -> bool:
        return self.error is not None and not self.unguarded

    @property
    def begins(self) -> bool:
        """Whether anything may be shown: the prompt was judged."""
        judged = self._flow.prompt_verdict is not None
        return judged or self.unguarded or self._settings.release == "before_check"

    def releases(self, end: int) -> bool:
        return self.unguarded or (self.begins and self._cleared >= end)

    @property
    def final(self) -> bool:
        """Whether everything is judged, or passes unjudged."""
        return self._flow.finished or self.unguarded

    def verdict(self) -> Verdict:
        """The documented field `guard`."""
        flag = self.flag
        if self.unguarded and not flag:
            return {"checked": False, "flagged": False, "flagged_by": None} | dict.fromkeys(
                ("severity", "categories", "strict", "loose", "position")
            )
        judgements: list[PromptVerdict | TokenVerdict] = [*self._stream.verdicts]
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
            "position": max(0, flag.offset - self._begun) if flag else None,
        }

    def _count_cleared(self, segments: Sequence[Segment]) -> None:
        self._cleared += sum(len(segment.content) for segment in segments)
        self._changed.set()
