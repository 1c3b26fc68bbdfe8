"""A Stream guard without a server, for which a word is a token, and each word with a marker in it is unsafe."""

from __future__ import annotations

import re
from typing import Any

from qwen3guard_client import AsyncStream, Category, PromptVerdict, RiskLevel, StepResult, TokenVerdict
from qwen3guard_client.stream.state import StreamState
from qwen3guard_client.transport import tasks
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import wire

MARKERS = ("zyqs", "xkil")
"""Letters that no text of a test has by chance."""
_WORDS = re.compile(r"\s*\S+|\s+")


def is_unsafe(text: str) -> bool:
    return any(marker in text.lower() for marker in MARKERS)


class WordGuard:
    """Stands where an AsyncGuardClient does. The prompt has one token."""

    def stream(self, *, messages: Any, policy: Any, context: Any, timeout_s: float) -> AsyncStream:
        return AsyncStream(
            self.send, StreamState(None, messages, policy, context), timeout_s, tasks.InFlight(lambda: None)
        )

    async def send(self, call: Call[Any], _: float | None = None) -> StepResult:
        if call.start:
            unsafe = is_unsafe(call.values[wire.MESSAGES][0].decode())
            verdict = PromptVerdict(*_label(unsafe), {}, {}, unsafe, unsafe, unsafe)
            return StepResult((), 1, 0, 0, verdict, "")
        text, first = call.values[wire.TEXT][0].decode(), call.values[wire.POSITION][0]
        tokens = []
        for number, word in enumerate(_WORDS.finditer(text)):
            unsafe = is_unsafe(word.group())
            level, category = _label(unsafe)
            flags = (unsafe, unsafe, unsafe, int(unsafe))
            tokens.append(TokenVerdict(first + number, level, category, {}, {}, *flags, word.end()))
        final = len(tokens) if call.end else max(0, len(tokens) - 1)
        end = tokens[final - 1].end if final else 0
        return StepResult(tuple(tokens), first + len(tokens), final, end or 0, None, "")


def _label(unsafe: bool) -> tuple[RiskLevel, Category | None]:
    return (RiskLevel.UNSAFE, Category.VIOLENT) if unsafe else (RiskLevel.SAFE, None)
