"""Decides which part of a moderated response may be shown, for a Flow. This module is pure state, without transport."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from qwen3guard_contract.errors import GuardError, InvalidRequest
from qwen3guard_contract.labels import RiskLevel
from qwen3guard_contract.thresholds import categories
from qwen3guard_contract.verdict import PromptVerdict, TokenVerdict

from qwen3guard_client.arguments import checked_choice

Release = Literal["after_check", "before_check"]
OnFlag = Literal["stop", "raise", "mark"]


@dataclass(frozen=True)
class Flag:
    """Why a conversation was stopped or marked, and where: at the beginning of the unsafe run that became a flag.

    `offset` counts characters of the response, or token ids if it is moderated as ids. It is 0 for a prompt.
    """

    verdict: PromptVerdict | TokenVerdict
    offset: int

    @property
    def in_prompt(self) -> bool:
        """Whether the prompt is flagged, and not the response."""
        return isinstance(self.verdict, PromptVerdict)

    def __str__(self) -> str:
        severity = self.verdict.severity.value
        if self.verdict.severity is RiskLevel.SAFE:  # its risk is above a threshold nevertheless
            severity = f"{1 - self.verdict.severity_probabilities[RiskLevel.SAFE]:.0%} risky"
        severity += f", {categories(self.verdict)[0].value}"
        return f"The prompt is {severity}." if self.in_prompt else f"The response is {severity} from {self.offset} on."


class Flagged(GuardError):
    """The error of `moderate(on_flag="raise")`. Its `flag` tells why and where."""

    code = "FLAGGED"

    def __init__(self, flag: Flag) -> None:
        super().__init__(str(flag))
        self.flag = flag


@dataclass(frozen=True)
class Segment:
    """A part of the response that may be shown, as text or token ids. `flag` is set from the flagged place on."""

    content: str | list[int]
    flag: Flag | None = None

    def __str__(self) -> str:
        return str(self.content)


class Gate:
    """Is told what an LLM writes and what the guard judges, and yields what may be shown.

    With `after_check`, text is shown when its tokens are final and not in an unsafe run that may still become a flag.
    With `before_check`, it is shown at once. From a flag on, nothing is shown, or everything is marked.
    """

    def __init__(self, release: Release, on_flag: OnFlag) -> None:
        """Raises InvalidRequest for unknown options."""
        checked_choice(release, get_args(Release))
        checked_choice(on_flag, get_args(OnFlag))
        self._release = release
        self._on_flag = on_flag
        self.flag: Flag | None = None
        self._held: str | list[int] | None = None
        """The part of the response that is written and not shown."""
        self._shown = 0
        self._ends = (0, 0)
        """Where the last judged token ends, and where the last token before it ends that ends elsewhere. Several tokens
        may spell one character, and then end at the same place."""
        self._run = 0
        self._run_begins = 0

    @property
    def stopped(self) -> bool:
        """Whether a flag has ended the response."""
        return self.flag is not None and self._on_flag != "mark"

    def wrote(self, piece: str | list[int]) -> Iterator[Segment]:
        """The LLM has written a piece. Raises InvalidRequest if text and token ids are mixed."""
        if self._held is None:
            self._held = piece
        elif isinstance(self._held, str) and isinstance(piece, str):
            self._held += piece
        elif isinstance(self._held, list) and isinstance(piece, list):
            self._held = self._held + piece
        else:
            raise InvalidRequest("A response is moderated as text or as token ids, not as both.")
        if self._release == "before_check":
            yield from self._show(len(self._held))

    def prompt_judged(self, verdict: PromptVerdict) -> None:
        """The prompt is judged."""
        if verdict.flag:
            self.flag = Flag(verdict, 0)

    def judged(self, tokens: Sequence[TokenVerdict]) -> Iterator[Segment]:
        """The next final tokens of the response are judged. Each is given once, in order."""
        for token in tokens:
            last, other = self._ends
            end = last + 1 if token.end is None else token.end
            if end != last:
                other = last
            if token.run == 1:
                self._run_begins = other
            self._run = token.run
            self._ends = (end, other)
            if token.flag and self.flag is None:
                self.flag = Flag(token, self._run_begins)
        if self._release == "after_check":
            clear = self._run_begins if self._run and self.flag is None else self._ends[0]
            yield from self._show(clear - self._shown)

    def finished(self) -> Iterator[Segment]:
        """Everything is written and judged. An unsafe run that did not become a flag is shown."""
        if self._held:
            yield from self._show(len(self._held))

    def _show(self, count: int) -> Iterator[Segment]:
        """Yields up to `count` characters or ids of the held part, divided at the flag."""
        before = count if self.flag is None else max(0, min(count, self.flag.offset - self._shown))
        for size, flag in ((before, None), (0 if self.stopped else count - before, self.flag)):
            if size > 0 and self._held:
                shown, self._held = self._held[:size], self._held[size:]
                self._shown += size
                yield Segment(shown, flag)
