"""Gen: conversations to verdicts, by greedy decoding of the short answer.

Knows token ids and slots; nothing of Triton.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from qwen3guard_client.errors import EmptyText, GuardError, InternalError, TextTooLong, TokenOutOfRange
from qwen3guard_client.manifest import Manifest

from qwen3guard_runtime.answer import AnswerReader, Field, Probabilities, Verdict
from qwen3guard_runtime.kv_cache import KVCache, Slot
from qwen3guard_runtime.runner import Ids, Row, Runner
from qwen3guard_runtime.tokenizer import IM_END, GuardTokenizer

ANSWER_TOKENS = 64
"""Room kept for the answer; a well-formed one has 7 to about 18 tokens for each category it names."""


@dataclass(frozen=True)
class Question:
    """A rendered conversation; `response_mode` when its last turn is the assistant's."""

    ids: Ids
    response_mode: bool


@dataclass
class Answer:
    """A greedy answer in the making: its ids (the end token last), their log-probabilities, and each decision."""

    question: Question
    slot: Slot
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    decisions: dict[Field, Probabilities] = field(default_factory=dict)
    text: str = ""
    ended: bool = False


class GenGuard:
    """Answers questions in batches; each answer is what greedy decoding of its own conversation gives."""

    def __init__(
        self, manifest: Manifest, runner: Runner, tokenizer: GuardTokenizer, end_ids: frozenset[int], *, slots: int
    ) -> None:
        self._manifest = manifest
        self._runner = runner
        self._cache = KVCache(manifest, slots=slots)
        self._end_ids = end_ids
        self.reader = AnswerReader(tokenizer)

    def answer(self, questions: Sequence[Question]) -> list[Answer | GuardError]:
        """One answer, or its own error, for each question; at most as many questions as slots."""
        try:
            return self._answer(questions)
        except Exception as error:
            if len(questions) > 1:  # one of them may be to blame, but the others are not
                return [answer for question in questions for answer in self.answer([question])]
            return [InternalError(f"The model could not be run ({type(error).__name__}).")]

    def _answer(self, questions: Sequence[Question]) -> list[Answer | GuardError]:
        answers: list[Answer | GuardError] = []
        for question in questions:
            try:
                self._check(question)
                slot = self._cache.acquire(len(question.ids) + ANSWER_TOKENS)
                answers.append(Answer(question, slot))
            except GuardError as error:
                answers.append(error)
        try:
            self._decode([answer for answer in answers if isinstance(answer, Answer)])
        finally:
            for answer in answers:
                if isinstance(answer, Answer):
                    self._cache.release(answer.slot)
        return answers

    def read(self, answer: Answer) -> Verdict:
        """Raises UnreadableAnswer."""
        return self.reader.read(
            answer.text if answer.ended else "",
            response_mode=answer.question.response_mode,
            decisions=answer.decisions,
        )

    def _check(self, question: Question) -> None:
        if not len(question.ids):
            raise EmptyText("There are no token ids.")
        limit = self._manifest.context - ANSWER_TOKENS
        if len(question.ids) > limit:
            raise TextTooLong(
                f"The conversation has {len(question.ids)} tokens with its template; "
                f"the context of {self._manifest.context} has room for {limit} and an answer."
            )
        check_ids(question.ids, self._manifest.vocab_size)

    def _decode(self, answers: Sequence[Answer]) -> None:
        pending = {id(answer): answer.question.ids for answer in answers}
        for _ in range(ANSWER_TOKENS):
            active = [answer for answer in answers if not answer.ended]
            if not active:
                return
            rows = [Row(each.slot, pending[id(each)], [len(pending[id(each)]) - 1]) for each in active]
            for answer, (logits,) in zip(active, self._runner.forward(rows), strict=True):
                token = self._extend(answer, logits[0])
                pending[id(answer)] = np.array([token], np.int64)

    def _extend(self, answer: Answer, logits: npt.NDArray[np.float32]) -> int:
        """Takes the most likely token from `logits` [vocab]."""
        token = int(logits.argmax())
        answer.ids.append(token)
        answer.logprobs.append(log_probability(logits, token))
        if token in self._end_ids:
            answer.ended = True
            return token
        decided = self.reader.field_decided_after(answer.text)
        if decided:
            answer.decisions[decided] = self.reader.probabilities(decided, logits)
        answer.text = self.reader.text(answer.ids)
        return token


def log_probability(logits: npt.NDArray[np.float32], token: int) -> float:
    """log softmax(logits)[token]; logits [vocab]."""
    shifted = logits - logits[token]
    peak = float(shifted.max())
    return -peak - float(np.log(np.exp(shifted - peak).sum(dtype=np.float64)))


def check_ids(ids: Ids, vocab_size: int) -> None:
    """Raises TokenOutOfRange for ids that the model has no embedding for."""
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise TokenOutOfRange(f"A token id is outside the vocabulary of {vocab_size}.")


def end_ids(folder: Path, tokenizer: GuardTokenizer) -> frozenset[int]:
    """Where an answer ends: the eos ids of generation_config.json and config.json, and `<|im_end|>`."""
    found = {tokenizer.special[IM_END]}
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        eos = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        found.update(eos if isinstance(eos, list) else [] if eos is None else [eos])
    return frozenset(found)
