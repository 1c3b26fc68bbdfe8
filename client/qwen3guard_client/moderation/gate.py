"""What of a moderated response may be shown: pure decisions, which a Flow takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from qwen3guard_contract.errors import GuardError, InvalidRequest
from qwen3guard_contract.labels import RiskLevel
from qwen3guard_contract.thresholds import categories
from qwen3guard_contract.verdict import PromptVerdict, TokenVerdict

from qwen3guard_client.stream.state import Piece

Release = Literal["after_check", "before_check"]
OnFlag = Literal["stop", "raise", "mark"]


@dataclass(frozen=True)
class Flag:
    """Why a conversation was stopped or marked, and where: before the unsafe run that ends with the flagged token.

    `offset` counts the characters of the response, or its token ids where it came as such; 0 for a prompt.
    """

    verdict: PromptVerdict | TokenVerdict
    offset: int

    @property
    def in_prompt(self) -> bool:
        return isinstance(self.verdict, PromptVerdict)

    def __str__(self) -> str:
        severity = self.verdict.severity.value
        if self.verdict.severity is RiskLevel.SAFE:  # but a threshold is lower
            severity = f"{1 - self.verdict.severity_probabilities[RiskLevel.SAFE]:.0%} risky"
        severity += f", {categories(self.verdict)[0].value}"
        return f"The prompt is {severity}." if self.in_prompt else f"The response is {severity} from {self.offset} on."


class Flagged(GuardError):
    """What `moderate(on_flag="raise")` raises; `flag` tells why and where."""

    code = "FLAGGED"

    def __init__(self, flag: Flag) -> None:
        super().__init__(str(flag))
        self.flag = flag


@dataclass(frozen=True)
class Segment:
    """A stretch of the response that may be shown: text, or token ids. `flag` is set from the flagged place on."""

    content: str | list[int]
    flag: Flag | None = None

    def __str__(self) -> str:
        return str(self.content)


class Gate:
    """Takes what an LLM writes and what the guard says of it, and gives what may be shown.

    After the check, text is shown when its tokens are final and stand in no unsafe run that may still grow into a
    flag. Before the check, it is shown at once. From a flag on, nothing is shown, or all is marked.
    """

    def __init__(self, release: Release, on_flag: OnFlag) -> None:
        """Raises InvalidRequest for other words."""
        for value, known in ((release, get_args(Release)), (on_flag, get_args(OnFlag))):
            if value not in known:
                raise InvalidRequest(f"{value!r} is not one of {', '.join(known)}.")
        self._release = release
        self._on_flag = on_flag
        self.flag: Flag | None = None
        self._held: str | list[int] | None = None
        """Written and not shown."""
        self._shown = 0
        self._ends = (0, 0)
        """Where the last judged token ends, and the last one before it that ends elsewhere: several tokens may
        spell one character."""
        self._run = 0
        self._run_begins = 0

    @property
    def stopped(self) -> bool:
        return self.flag is not None and self._on_flag != "mark"

    def wrote(self, piece: Piece) -> Iterator[Segment]:
        """Raises InvalidRequest where text and token ids are mixed, or for bytes, which would pass for ids."""
        if isinstance(piece, bytes | bytearray | memoryview):
            raise InvalidRequest("A response is moderated as text or as token ids, not as bytes.")
        content = piece if isinstance(piece, str) else list(piece)
        if self._held is None:
            self._held = content
        elif isinstance(self._held, str) and isinstance(content, str):
            self._held += content
        elif isinstance(self._held, list) and isinstance(content, list):
            self._held = self._held + content
        else:
            raise InvalidRequest("A response is moderated as text or as token ids, not as both.")
        if self._release == "before_check":
            yield from self._show(len(self._held))

    def prompt_judged(self, verdict: PromptVerdict) -> None:
        if verdict.flag:
            self.flag = Flag(verdict, 0)

    def judged(self, tokens: Sequence[TokenVerdict]) -> Iterator[Segment]:
        """Final tokens of the response, each given once, in order."""
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
        """All was written and judged: an unsafe run that has not grown into a flag passes."""
        if self._held:
            yield from self._show(len(self._held))

    def _show(self, count: int) -> Iterator[Segment]:
        """Up to `count` characters or ids of what is held, parted where the flag stands."""
        before = count if self.flag is None else max(0, min(count, self.flag.offset - self._shown))
        for size, flag in ((before, None), (0 if self.stopped else count - before, self.flag)):
            if size > 0 and self._held:
                shown, self._held = self._held[:size], self._held[size:]
                self._shown += size
                yield Segment(shown, flag)
