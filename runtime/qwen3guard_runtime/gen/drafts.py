"""Guesses at the rest of an answer, to be verified in the pass that would have been needed anyway."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3guard_contract.labels import CATEGORY_ORDER, RiskLevel

from qwen3guard_runtime.gen.answer import CATEGORIES_FIELD, REFUSAL_FIELD, SAFETY
from qwen3guard_runtime.text.tokenizer import GuardTokenizer


class Drafts:
    """All well-formed answers with one category, the likeliest first: Safe, and no refusal; without an end token,
    which would be computed for nothing."""

    def __init__(self, tokenizer: GuardTokenizer) -> None:
        self._answers: dict[bool, list[list[int]]] = {False: [], True: []}
        for level in (RiskLevel.SAFE, RiskLevel.UNSAFE, RiskLevel.CONTROVERSIAL):
            categories = [None] if level is RiskLevel.SAFE else [each for each in CATEGORY_ORDER if each]
            for category in categories:
                verdict = f"{SAFETY.spell(level)}\n{CATEGORIES_FIELD.spell(category)}"
                self._answers[False].append(tokenizer.encode(verdict))
                for refusal in reversed(REFUSAL_FIELD.values):
                    self._answers[True].append(tokenizer.encode(f"{verdict}\n{REFUSAL_FIELD.spell(refusal)}"))

    def rest(self, begun: Sequence[int], *, response_mode: bool) -> list[int]:
        """What follows `begun` in the likeliest answer that begins so; nothing if none does."""
        size = len(begun)
        found = (answer for answer in self._answers[response_mode] if answer[:size] == list(begun))
        return next(found, [])[size:]
