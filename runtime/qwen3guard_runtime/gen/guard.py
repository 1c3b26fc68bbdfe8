"""Gen: conversations to verdicts, by greedy decoding of the short answer.

The template's head is in the slot already; the rest of the conversation goes into one pass together with a drafted
answer, and the logits say how much of the draft greedy decoding would have written. Where it would have written
something else, that token begins the next pass, with another draft. Knows token ids and slots; nothing of Triton.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import EmptyText, GuardError, InternalError, TextTooLong
from qwen3guard_contract.manifest import Manifest

from qwen3guard_runtime.engine.kv_cache import HOST, KVCache, Memory, Slot
from qwen3guard_runtime.engine.logits import check_ids, not_finite
from qwen3guard_runtime.engine.runner import Ids, Row, Runner
from qwen3guard_runtime.gen.answer import AnswerReader, AnswerVerdict, Field, Probabilities
from qwen3guard_runtime.gen.drafts import Drafts
from qwen3guard_runtime.gen.prefixes import Prefixes
from qwen3guard_runtime.telemetry.metrics import GenMetrics
from qwen3guard_runtime.text.tokenizer import IM_END, GuardTokenizer

ANSWER_TOKENS = 64
"""Room kept for the answer; a well-formed one has 7 to about 18 tokens for each category it names."""


@dataclass(frozen=True)
class Question:
    """A rendered conversation; `response_mode` when its last turn is the assistant's."""

    ids: Ids
    response_mode: bool


@dataclass
class Answer:
    """A greedy answer in the making: its ids (the end token last), their log-probabilities, and each decision; or the
    `error` that it came to."""

    question: Question
    slot: Slot
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    decisions: dict[Field, Probabilities] = field(default_factory=dict)
    text: str = ""
    ended: bool = False
    passes: int = 0
    error: InternalError | None = None

    @property
    def is_done(self) -> bool:
        return self.ended or self.error is not None or len(self.ids) == ANSWER_TOKENS


class GenGuard:
    """Answers questions in batches; each answer is what greedy decoding of its own conversation gives."""

    def __init__(
        self,
        manifest: Manifest,
        runner: Runner,
        tokenizer: GuardTokenizer,
        end_ids: frozenset[int],
        *,
        slots: int,
        prefixes: Sequence[Ids] = (),
        drafts: Drafts | None = None,
        memory: Memory = HOST,
        metrics: GenMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `prefixes` every conversation is computed whole; without `drafts` every token has its own pass."""
        self._manifest = manifest
        self._runner = runner
        self._cache = KVCache(manifest, slots=slots, memory=memory)
        self._end_ids = end_ids
        self._prefixes = Prefixes(manifest, runner, prefixes, memory)
        self._drafts = drafts
        self._metrics = metrics or GenMetrics()
        self._clock = clock
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
        began = self._clock()
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
        seconds = self._clock() - began
        for answer in answers:
            if isinstance(answer, Answer) and not answer.error:
                self._metrics.answered(answer.passes, len(answer.question.ids), seconds)
        return [(answer.error or answer) if isinstance(answer, Answer) else answer for answer in answers]

    def read(self, answer: Answer) -> AnswerVerdict:
        """Raises UnreadableAnswer where no level can be read."""
        return self.reader.read(
            answer.text,
            response_mode=answer.question.response_mode,
            decisions=answer.decisions,
            ended=answer.ended,
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
        pending = {
            id(each): each.question.ids[self._prefixes.begin(each.slot, each.question.ids) :] for each in answers
        }
        while active := [each for each in answers if not each.is_done]:
            drafts = [self._draft(each) for each in active]
            rows = []
            for each, draft in zip(active, drafts, strict=True):
                ids = pending[id(each)]
                asked = range(len(ids) - 1, len(ids) + len(draft))
                rows.append(Row(each.slot, np.concatenate([ids, draft]), asked))
            began = self._clock()
            found = self._runner.forward(rows)
            self._metrics.ran("decode" if active[0].ids else "prefill", len(rows), self._clock() - began)
            for each, draft, (logits,) in zip(active, drafts, found, strict=True):
                token, accepted = self._verify(each, draft, logits)
                self._metrics.drafted(len(draft), accepted)
                each.passes += 1
                each.slot.length -= len(draft) - accepted
                pending[id(each)] = np.array([token], np.int64)

    def _draft(self, answer: Answer) -> Ids:
        if self._drafts is None:
            return np.zeros(0, np.int64)
        rest = self._drafts.rest(answer.ids, response_mode=answer.question.response_mode)
        return np.array(rest[: ANSWER_TOKENS - len(answer.ids) - 1], np.int64)

    def _verify(self, answer: Answer, draft: Ids, logits: npt.NDArray[np.float32]) -> tuple[int, int]:
        """Takes greedy tokens from `logits` [1 + draft, vocab] as long as the draft has them too, and the one after.

        Returns that last token, and how many of the draft's were right. A row that is not finite ends it with an error.
        """
        for accepted, row in enumerate(logits):
            token = int(row.argmax())
            answer.error = not_finite([row])
            if answer.error:
                self._metrics.not_finite()
                return token, accepted
            self._extend(answer, token, row)
            if answer.ended or accepted == len(draft) or token != draft[accepted]:
                return token, accepted
        raise ValueError("there are no logits")

    def _extend(self, answer: Answer, token: int, logits: npt.NDArray[np.float32]) -> None:
        """Takes `token`, the most likely one of `logits` [vocab]."""
        answer.ids.append(token)
        answer.logprobs.append(log_probability(logits, token))
        if token in self._end_ids:
            answer.ended = True
            return
        decided = self.reader.field_decided_after(answer.text)
        if decided:
            # A broken answer may come to a label again; the level and the rest are read where they stand first.
            answer.decisions.setdefault(decided, self.reader.probabilities(decided, logits))
        answer.text = self.reader.text(answer.ids)


def log_probability(logits: npt.NDArray[np.float32], token: int) -> float:
    """log softmax(logits)[token]; logits [vocab]."""
    shifted = logits - logits[token]
    peak = float(shifted.max())
    return -peak - float(np.log(np.exp(shifted - peak).sum(dtype=np.float64)))


def end_ids(folder: Path, tokenizer: GuardTokenizer) -> frozenset[int]:
    """Where an answer ends: the eos ids of generation_config.json and config.json, and `<|im_end|>`."""
    found = {tokenizer.special[IM_END]}
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        eos = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        found.update(each for each in (eos if isinstance(eos, list) else [eos]) if type(each) is int)
    return frozenset(found)
