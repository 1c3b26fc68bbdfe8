"""A Gen guard without a graph: it writes the answers that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from qwen3guard_contract import errors
from qwen3guard_runtime.engine.kv_cache import HostArena
from qwen3guard_runtime.engine.prefixes import PrefixLimits
from qwen3guard_runtime.engine.runner import Logits, Row
from qwen3guard_runtime.gen.answer import AnswerReader
from qwen3guard_runtime.gen.drafts import Drafts
from qwen3guard_runtime.gen.guard import Answer, GenGuard, Question
from qwen3guard_runtime.text.tokenizer import IM_END, GuardTokenizer

from support.chosen import chosen
from support.places import DEMO
from support.token_sum import MANIFEST

VOCAB = 8192
TOKENIZER = GuardTokenizer.load(DEMO / "gen")
END = TOKENIZER.special[IM_END]


QUESTION = 3
"""Tokens of a conversation here; the first says what the answer is."""


class Scripted:
    """A graph that writes the answer that the first token of a conversation stands for. It reads what stands in the
    slot, and after anything but a beginning of that answer it writes nonsense."""

    candidates = AnswerReader(TOKENIZER).candidates

    def __init__(self, answers: dict[int, str], poison: int = -1) -> None:
        self.answers = {first: [*TOKENIZER.encode(answer), END] for first, answer in answers.items()}
        self.poison = poison
        self.computed = 0

    def forward(self, rows: Sequence[Row]) -> list[Logits]:
        results: list[Logits] = []
        for row in rows:
            if self.poison in row.ids:
                raise RuntimeError("the graph broke")
            slot = row.slot
            assert isinstance(slot.arena, HostArena)
            cells = slot.arena.arrays[0][slot.row, 0, :, 0]
            cells[slot.length : slot.length + len(row.ids)] = row.ids
            logits = np.zeros((len(row.asked), VOCAB), np.float32)
            for number, index in enumerate(row.asked):
                written = cells[QUESTION : slot.length + index + 1].astype(int).tolist()
                answer = self.answers[int(cells[0])]
                right = answer[: len(written)] == written
                logits[number, answer[len(written)] if right else 77] = 5
            self.spoil(logits, row)
            slot.append(row.ids)
            self.computed += len(row.ids)
            results.append(chosen(logits, self.candidates))
        return results

    def spoil(self, logits: npt.NDArray[np.float32], row: Row) -> None:
        """For a subclass: changes the logits of a row, whose slot holds what stood there before it."""


def guard(
    scripted: Scripted,
    *,
    prefixes: Sequence[Sequence[int]] = (),
    drafts: bool = True,
    limits: PrefixLimits | None = None,
) -> GenGuard:
    manifest = replace(MANIFEST, variant="gen", vocab_size=VOCAB)
    return GenGuard(
        manifest,
        scripted,
        TOKENIZER,
        frozenset({END}),
        slots=8,
        prefixes=[np.array(prefix) for prefix in prefixes],
        drafts=Drafts(TOKENIZER) if drafts else None,
        limits=limits,
    )


def ask(gen: GenGuard, *firsts: int, response_mode: bool = False) -> list[Answer | errors.GuardError]:
    return gen.answer([Question(np.array([first, 7, 8]), response_mode) for first in firsts])
