"""Guesses at the rest of an answer. They are verified in a pass that is needed anyway, and save the passes after it."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3guard_contract.labels import CATEGORY_ORDER, RiskLevel

from qwen3guard_runtime.gen.answer import CATEGORIES_FIELD, REFUSAL_FIELD, SAFETY
from qwen3guard_runtime.text.tokenizer import GuardTokenizer


class Drafts:
    """All well-formed answers with at most one category, in order of likelihood: Safe before Unsafe and Controversial,
    and no refusal before a refusal. They have no end token, because what follows it is never needed."""

    def __init__(self, tokenizer: GuardTokenizer) -> None:
        self._answers: dict[bool, list[list[int]]] = {False: [], True: []}
        for level in (RiskLevel.SAFE, RiskLevel.UNSAFE, RiskLevel.CONTROVERSIAL):
            categories = [None] if level is RiskLevel.SAFE else [each for each in CATEGORY_ORDER if each]
            for category in categories:
                verdict = f"{SAFETY.spell(level)}\n{CATEGORIES_FIELD.spell(category)}"
                self._answers[False].append(tokenizer.encode(verdict))
                for refusal in reversed(REFUSAL_FIELD.values):
                    self._answers[True].append(tokenizer.encode(f"{verdict}\n{REFUSAL_FIELD.spell(refusal)}"))

    def rest(self, beginning: Sequence[int], *, response_mode: bool) -> list[int]:
        """The ids after `beginning` in the likeliest answer that begins with it. Empty if there is none."""
        size = len(beginning)
        matching = (answer for answer in self._answers[response_mode] if answer[:size] == list(beginning))
        return next(matching, [])[size:]
