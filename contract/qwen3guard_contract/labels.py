"""The labels of a verdict, and the index order of every classification head.

Qwen3Guard's heads number the levels Safe 0, Unsafe 1, Controversial 2, which is not the order of severity. Compare
levels with `<`, and never compare indices.
"""

from __future__ import annotations

from enum import Enum
from functools import total_ordering


@total_ordering
class RiskLevel(Enum):
    """A level of risk. Levels are ordered by severity: SAFE < CONTROVERSIAL < UNSAFE."""

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
        """Whether this level counts as unsafe in strict mode, or else in loose mode."""
        return self is RiskLevel.UNSAFE or (strict and self is RiskLevel.CONTROVERSIAL)


_SEVERITY = {RiskLevel.SAFE: 0, RiskLevel.CONTROVERSIAL: 1, RiskLevel.UNSAFE: 2}


class Category(Enum):
    """A safety category. Only prompts are judged for JAILBREAK."""

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
    """Whether Gen's answer is well-formed. If it is not, its level still counts, and so does what else can be read."""

    COMPLETE = "complete"
    CUT = "cut"
    """The answer had not ended after the largest number of tokens that an answer may have."""
    UNREADABLE = "unreadable"
    """The answer ended, but what follows the level is malformed."""


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
    """Returns a label of upstream's config.json in this project's spelling. Upstream may put quotes inside the string
    (`"Violent"`)."""
    return label.strip().strip("\"'").strip()
