"""What the command line writes for a person: verdicts in colours, with probabilities as bars, and progress lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from qwen3guard_contract.labels import AnswerStatus, Category, RiskLevel
from qwen3guard_contract.verdict import Classification, PromptVerdict, TokenVerdict

_COLOURS = {RiskLevel.SAFE: "32", RiskLevel.CONTROVERSIAL: "33", RiskLevel.UNSAFE: "31"}
_BY_SEVERITY = sorted(RiskLevel)
_BAR = 12


def say(text: str) -> None:
    """Writes a line of progress, or an error, to standard error."""
    print(text, file=sys.stderr, flush=True)


class Terminal:
    """Writes to `out`, in colours if FORCE_COLOR is set, or if `out` is a terminal and NO_COLOR is unset."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        forced = bool(os.environ.get("FORCE_COLOR"))
        self.colours = forced or (self.out.isatty() and "NO_COLOR" not in os.environ)

    def line(self, text: str = "") -> None:
        print(text, file=self.out, flush=True)

    def paint(self, text: str, codes: str) -> str:
        return f"\033[{codes}m{text}\033[0m" if self.colours else text

    def dim(self, text: str) -> str:
        return self.paint(text, "2")

    def level(self, level: RiskLevel, text: str | None = None) -> str:
        return self.paint(text or level.value, f"1;{_COLOURS[level]}")

    def notice(self, notice: str) -> None:
        if notice:
            self.line(self.paint(f"  ({notice})", "33"))

    def probabilities(self, values: dict[RiskLevel, float]) -> str:
        return "   ".join(
            f"{level.value} {self.paint(_bar(values[level]), _COLOURS[level])} {values[level]:6.1%}"
            for level in _BY_SEVERITY
        )

    def classification(self, found: Classification) -> None:
        judged = "prompt" if found.refusal is None else "response"
        named = ", ".join(category.value for category in found.categories)
        self.line(f"  {judged}: {self.level(found.severity)}{f' · {named}' if named else ''}")
        self.line(f"  {self.probabilities(found.severity_probabilities)}")
        refusal = f" · refusal {found.refusal.value}" if found.refusal else ""
        decisions = {"strict": found.strict, "loose": found.loose, "server": found.unsafe}
        line = " · ".join(f"{name} {'unsafe' if unsafe else 'safe'}" for name, unsafe in decisions.items())
        self.line(self.dim(f"  {line}{refusal}"))
        self._left_out(found.turns_left_out)
        if found.windows:
            self.line(self.dim(f"  judged in {len(found.windows)} windows, of which this is the most severe"))
        if found.answer_status is not AnswerStatus.COMPLETE:
            self.line(self.paint(f"  The answer is {found.answer_status.value}: its categories may be missing.", "33"))
        self.notice(found.notice)

    def prompt_verdict(self, found: PromptVerdict) -> None:
        named = f" · {found.category.value}" if found.category else ""
        self.line(f"  prompt: {self.level(found.severity)}{named}")
        self.line(f"  {self.probabilities(found.severity_probabilities)}")
        self._left_out(found.turns_left_out)

    def _left_out(self, turns: int) -> None:
        if turns:
            self.line(self.paint(f"  The oldest {turns} turns were left out: they do not fit.", "33"))

    def piece(self, text: str, tokens: Sequence[TokenVerdict]) -> None:
        """A piece of the response in the colour of its worst token, underlined where it is flagged."""
        worst = max((token.severity for token in tokens), default=RiskLevel.SAFE)
        codes = _COLOURS[worst] + (";4" if any(token.flag for token in tokens) else "")
        print(self.paint(text, codes), end="", file=self.out, flush=True)

    def flagged(self, found: Mapping[str, TokenVerdict | None], first: int) -> None:
        """Says where the stream was flagged under each name; `first` is the position of its first response token."""
        for name, token in found.items():
            if token is None:
                self.line(f"  {name}: {self.level(RiskLevel.SAFE, 'not flagged')}")
            else:
                where = f"flagged at response token {token.position - first + 1}"
                self.line(f"  {name}: {self.level(token.severity, where)}{_named(token.category)}")


def _named(category: Category | None) -> str:
    return f" · {category.value}" if category else ""


def _bar(share: float) -> str:
    filled = round(share * _BAR)
    return "█" * filled + "░" * (_BAR - filled)
