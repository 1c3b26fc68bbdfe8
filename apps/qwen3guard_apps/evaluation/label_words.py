"""The words in which data sets say that a text is unsafe, and of which category: values of labels, names of fields
whose true stands for safe, and other names of the categories."""

from __future__ import annotations

import re
from typing import Any

from qwen3guard_contract.labels import Category, RiskLevel

LEVELS = {level.value.casefold(): level for level in RiskLevel}
_SAFE = {"unharmful", "harmless", "benign", "nontoxic", "unflagged", "clean"}
_UNSAFE = {"harmful", "toxic", "malicious", "flagged", "jailbreak"}
_NOT_SAFE = {f"{no}{word}" for no in ("not", "non") for word in ("safe", *_SAFE)}
_NOT_UNSAFE = {f"{no}{word}" for no in ("not", "non") for word in ("unsafe", *_UNSAFE)}
_TRUE = {"true", "yes", "y", "t", "1"}
_FALSE = {"false", "no", "n", "f", "0"}
KNOWN_LABELS = (
    "Safe, Unsafe, Controversial, true, false, 1, 0, yes, no, harmful, unharmful, toxic, benign and their like"
)
_SAFE_NAMES = {"safe", "harmless", "benign", "unharmful", "acceptable", "clean", "ok"}
_UNSAFE_NAMES = {"unsafe", "harmful", "toxic", "malicious", "flagged", "harm"}
_NEGATIONS = {"not", "non", "no"}
NO_CATEGORY = {"", "none", "safe", "na", "null", "nan"}

_NAMES: dict[Category, tuple[str, ...]] = {
    Category.VIOLENT: ("violence", "violent crimes", "violent acts", "weapons", "terrorism"),
    Category.SEXUAL: (
        "sexual", "sexual content", "sexual acts", "sex", "sex crimes", "sexually explicit",
        "sexually explicit content", "adult content", "pornography", "sexual_explicit,adult_content",
        "child sexual exploitation",
    ),
    Category.SUICIDE: ("suicide", "self-harm", "suicide and self-harm", "suicide, self-harm", "self-harm and suicide"),
    Category.POLITICAL: ("political", "politics", "politically sensitive", "politically sensitive topic"),
    Category.PII: (
        "personally identifiable information", "personal identifiable information", "personal information",
        "personal data", "privacy", "privacy violation", "privacy violations", "private information",
    ),
    Category.COPYRIGHT: (
        "copyright", "copyright violations", "copyright infringement", "intellectual property",
        "intellectual property violation",
    ),
    Category.ILLEGAL: (
        "illegal", "illegal acts", "illegal activity", "illegal activities", "nonviolent illegal acts",
        "non-violent illegal act", "non-violent crimes",
    ),
    Category.UNETHICAL: (
        "unethical", "unethical act", "unethical behavior", "hate", "hate speech", "harassment", "discrimination",
        "bias", "insult", "misinformation",
    ),
    Category.JAILBREAK: ("jailbreaking", "jailbreaks", "jailbreak (only for input)", "prompt injection"),
}  # fmt: skip


def _plain(text: str) -> str:
    """Letters and digits alone, so that case, spaces, hyphens and underlines do not count; & is "and"."""
    return re.sub(r"[^\w]|_", "", text.replace("&", "and").casefold())


_CATEGORIES = {_plain(name): each for each, names in _NAMES.items() for name in (each.value, *names)}


def category_of(name: str) -> Category | None:
    """The category that `name` stands for, or None where no name of a category is known as that."""
    return _CATEGORIES.get(_plain(name))


def is_no_category(name: str) -> bool:
    return _plain(name) in NO_CATEGORY


def names_what_is_safe(field: str) -> bool:
    """Whether true in a field of this name stands for safe, as in `is_safe`, `benign` or `notHarmful`."""
    words = {each.lower() for each in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", field)}
    negated = bool(words & _NEGATIONS)
    if words & _SAFE_NAMES:
        return not negated
    return negated and bool(words & _UNSAFE_NAMES)


def level_of(value: Any, *, inverted: bool) -> RiskLevel | None:
    """The level that a label stands for, or None where it is not known. `inverted` says that true stands for safe."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | bool | int):
        return None
    text = str(value).strip().removesuffix(".0")
    word = _plain(text)
    if word.isdigit() and word != text:  # -1 is not 1
        return None
    if word in LEVELS:
        return LEVELS[word]
    if word in _SAFE or word in _NOT_UNSAFE:
        return RiskLevel.SAFE
    if word in _UNSAFE or word in _NOT_SAFE:
        return RiskLevel.UNSAFE
    if word not in _TRUE | _FALSE:
        return None
    return RiskLevel.UNSAFE if (word in _TRUE) is not inverted else RiskLevel.SAFE
