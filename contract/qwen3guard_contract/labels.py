"""The words of a verdict, and the index order of every classification head.

Qwen3Guard's heads number the levels Safe 0, Unsafe 1, Controversial 2: not the order of severity. Compare
levels with `<`, never indices.
"""

from __future__ import annotations

from enum import Enum
from functools import total_ordering


@total_ordering
class RiskLevel(Enum):
    """A level of risk; ordered by severity: SAFE < CONTROVERSIAL < UNSAFE."""

    SAFE = "Safe"
    UNSAFE = "Unsafe"
    CONTROVERSIAL = "Controversial"

    @property
    def severity(self) -> int:
        return _SEVERITY[self]

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, RiskLevel):
            return NotImplemented
        return self.severity < other.severity

    def is_unsafe(self, *, strict: bool) -> bool:
        """Whether an operator in strict (or loose) mode must treat this level as unsafe."""
        return self is RiskLevel.UNSAFE or (strict and self is RiskLevel.CONTROVERSIAL)


_SEVERITY = {RiskLevel.SAFE: 0, RiskLevel.CONTROVERSIAL: 1, RiskLevel.UNSAFE: 2}


class Category(Enum):
    """A safety category. JAILBREAK is judged in prompts only."""

    VIOLENT = "Violent"
    SEXUAL = "Sexual Content or Sexual Acts"
    SUICIDE = "Suicide & Self-Harm"
    POLITICAL = "Politically Sensitive Topics"
    PII = "PII"
    COPYRIGHT = "Copyright Violation"
    ILLEGAL = "Non-violent Illegal Acts"
    UNETHICAL = "Unethical Acts"
    JAILBREAK = "Jailbreak"


class Refusal(Enum):
    """Whether a response refuses what the prompt asked for."""

    YES = "Yes"
    NO = "No"


class AnswerStatus(Enum):
    """How far Gen's answer has the form of one; where it has not, its level stands, and what else could be read."""

    COMPLETE = "complete"
    CUT = "cut"
    """It did not end in the room that there is for it."""
    UNREADABLE = "unreadable"
    """It ended, but what follows the level has not the form."""


RISK_ORDER: tuple[RiskLevel, ...] = tuple(RiskLevel)
"""Index order of the risk heads, and of every array of risk probabilities on the wire."""

QUERY_CATEGORY_ORDER: tuple[Category, ...] = tuple(Category)
"""Index order of the category head that judges a prompt (9)."""

RESPONSE_CATEGORY_ORDER: tuple[Category, ...] = QUERY_CATEGORY_ORDER[:8]
"""Index order of the category head that judges a response (8)."""

CATEGORY_ORDER: tuple[Category | None, ...] = (*QUERY_CATEGORY_ORDER, None)
"""Index order of Gen's category probabilities on the wire; the last entry is the answer `None`."""

REFUSAL_ORDER: tuple[Refusal, ...] = tuple(Refusal)
"""Index order of Gen's refusal probabilities on the wire."""


def normalize(label: str) -> str:
    """A label as upstream's config.json may spell it (`"Violent"`, quotes inside), as we spell it."""
    return label.strip().strip("\"'").strip()
