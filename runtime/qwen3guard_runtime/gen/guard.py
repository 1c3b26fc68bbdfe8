"""Gen: turns conversations into short answers by greedy decoding, and reads the verdicts in them.

A conversation's slot begins with what is held of it (engine.prefixes), at least the template's fixed beginning. The
rest goes into one pass, together with a draft of the answer. The logits show how much of the draft greedy decoding
would have written. Where it would have written another token, that token begins the next pass, with another draft. This
module knows token ids and slots, and nothing of Triton.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from qwen3guard_contract.errors import Abandoned, EmptyText, GuardError, InternalError, TextTooLong
from qwen3guard_contract.manifest import Manifest

from qwen3guard_runtime.engine.kv_cache import HOST, Ids, KVCache, Memory, Slot
from qwen3guard_runtime.engine.logits import softmax
from qwen3guard_runtime.engine.prefixes import PrefixCache, PrefixLimits
from qwen3guard_runtime.engine.runner import Row, Runner, check_ids
from qwen3guard_runtime.gen.answer import AnswerReader, AnswerVerdict, Field, Probabilities
from qwen3guard_runtime.gen.choices import Choice, choices
from qwen3guard_runtime.gen.drafts import Drafts
from qwen3guard_runtime.request import never
from qwen3guard_runtime.telemetry.metrics import GenMetrics, Pass
from qwen3guard_runtime.text.tokenizer import GuardTokenizer

ANSWER_TOKENS = 64
"""The most tokens that an answer may have. A well-formed one has 7 to about 18 for each category that it names."""
HELD_SLOTS = 64
"""The most conversations that are held for later ones."""


@dataclass(frozen=True)
class Question:
    """The token ids of a conversation, template included. In `response_mode` its last turn is the assistant's. What is
    held for the `scope` is not computed again. A `canary` is the manifest's, and asks for no more than its values.
    `is_abandoned` is asked between passes."""

    ids: Ids
    response_mode: bool
    scope: str | None = None
    canary: bool = False
    is_abandoned: Callable[[], bool] = never


@dataclass
class Answer:
    """A greedy answer while it is decoded: its ids, at last with the end token, and their log-probabilities.

    `decisions` has the probabilities of each field that was decided so far. `alternatives` has for each of its values
    the index in `ids` that decided it, the value's first token, and that token's log-probability. `next_ids` are the
    ids that go into the next pass. It has at most `most` ids. With an `error` there will be no answer.
    """

    question: Question
    slot: Slot
    next_ids: Ids
    most: int = ANSWER_TOKENS
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    decisions: dict[Field, Probabilities] = field(default_factory=dict)
    alternatives: list[tuple[int, int, float]] = field(default_factory=list)
    text: str = ""
    ended: bool = False
    passes: int = 0
    is_sound: bool = True
    """Whether everything in the slot is finite, also behind what was used of the last draft."""
    error: GuardError | None = None

    @property
    def is_done(self) -> bool:
        return self.ended or self.error is not None or len(self.ids) == self.most


class GenGuard:
    """Answers questions in batches. Each answer is the one that greedy decoding gives for its conversation alone."""

    def __init__(
        self,
        manifest: Manifest,
        runner: Runner,
        tokenizer: GuardTokenizer,
        end_ids: frozenset[int],
        *,
        slots: int,
        prefixes: Sequence[Ids] = (),
        limits: PrefixLimits | None = None,
        drafts: Drafts | None = None,
        memory: Memory = HOST,
        metrics: GenMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The `prefixes` are computed here, for all conversations. Without `limits`, nothing else is held. Without
        `drafts`, every token of an answer needs its own pass. `end_ids` are the tokens that end an answer."""
        self._manifest = manifest
        self._runner = runner
        limits = limits or PrefixLimits()
        own = slots + len(prefixes)
        cache = KVCache(
            manifest,
            slots=own + (HELD_SLOTS if limits.held_bytes else 0),
            budget_bytes=own * KVCache.least_bytes(manifest, memory) + limits.held_bytes,
            memory=memory,
        )
        self.cache = PrefixCache(cache, limits, clock)
        for prefix in prefixes:
            self.cache.pin(runner, prefix)
        self._end_ids = end_ids
        self._drafts = drafts
        self._metrics = metrics or GenMetrics()
        self._uncounted = GenMetrics()
        """What is counted here for canaries is shown nowhere."""
        self._canary_answer: list[int] = []
        """The answer to the last canary, which is the next one's draft."""
        self._clock = clock
        self.reader = AnswerReader(tokenizer)
        self._candidates = self.reader.candidates

    def answer(self, questions: Sequence[Question]) -> list[Answer | GuardError]:
        """Returns one answer, or its own error, for each question. There may be at most as many questions as slots.

        Canaries come after all others, in passes of their own.
        """
        answers = {
            canary: iter(self._try([question for question in questions if question.canary is canary]))
            for canary in (False, True)
        }
        return [next(answers[question.canary]) for question in questions]

    def _try(self, questions: Sequence[Question]) -> list[Answer | GuardError]:
        try:
            return self._answer(questions) if questions else []
        except Exception as error:
            if len(questions) > 1:  # perhaps only one of them is the cause: answer each alone
                return [answer for question in questions for answer in self._try([question])]
            return [InternalError(f"The model could not be run ({type(error).__name__}).")]

    def _answer(self, questions: Sequence[Question]) -> list[Answer | GuardError]:
        self.cache.drop_idle()
        began_s = self._clock()
        answers: list[Answer | GuardError] = []
        for question in questions:
            try:
                self._check(question)
                answers.append(self._begin(question))
            except GuardError as error:
                answers.append(error)
        began = [answer for answer in answers if isinstance(answer, Answer)]
        is_decoded = False
        try:
            self._decode(began)
            is_decoded = True
        finally:
            for each in began:
                each.slot.length = min(each.slot.length, len(each.question.ids))
                self.cache.release(each.slot, hold=is_decoded and each.is_sound)
        seconds = self._clock() - began_s
        for answer in answers:
            if isinstance(answer, Answer) and not answer.error:
                self._count(answer, seconds)
        return [(answer.error or answer) if isinstance(answer, Answer) else answer for answer in answers]

    def _count(self, answer: Answer, seconds: float) -> None:
        if answer.question.canary:
            self._canary_answer = answer.ids[: len(answer.ids) - answer.ended]
            self._metrics.canary(answer.passes, seconds)
        else:
            self._metrics.answered(answer.passes, len(answer.question.ids), seconds)

    def _counts(self, question: Question) -> GenMetrics:
        """Where the work for a question is counted."""
        return self._uncounted if question.canary else self._metrics

    def _begin(self, question: Question) -> Answer:
        """Takes a slot for a question. At least its last token is left to compute, because slots hold no logits."""
        slot = self.cache.acquire(question.ids[:-1], question.scope)
        held = slot.length
        self.cache.grow(slot, len(question.ids) + ANSWER_TOKENS)
        self._counts(question).began(reused=held, computed=len(question.ids) - held)
        most = min(len(self._manifest.canary.values), ANSWER_TOKENS) if question.canary else ANSWER_TOKENS
        return Answer(question, slot, next_ids=question.ids[held:], most=most)

    def read(self, answer: Answer) -> AnswerVerdict:
        """Reads the verdict in an answer. Raises UnreadableAnswer if its level cannot be read."""
        return self.reader.read(
            answer.text,
            response_mode=answer.question.response_mode,
            decisions=answer.decisions,
            ended=answer.ended,
        )

    def _check(self, question: Question) -> None:
        """Raises EmptyText, TextTooLong or TokenOutOfRange."""
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
        """Runs passes over the answers that are not done, until all are.

        Each answer has one row in a pass: its `next_ids`, and a draft of the rest of the answer. The logits at the last
        of the `next_ids` and at each drafted token are asked for.
        """
        while active := [answer for answer in answers if not answer.is_done]:
            drafts = [self._draft(answer) for answer in active]
            rows = []
            for answer, draft in zip(active, drafts, strict=True):
                count = len(answer.next_ids)
                asked = range(count - 1, count + len(draft))
                rows.append(Row(answer.slot, np.concatenate([answer.next_ids, draft]), asked))
            began_s = self._clock()
            results = self._runner.forward(rows)
            kind: Pass = "decode" if active[0].ids else "prefill"
            self._counts(active[0].question).ran(kind, len(rows), self._clock() - began_s)
            for answer, draft, outputs in zip(active, drafts, results, strict=True):
                made = choices(outputs, self._candidates)
                accepted = self._verify(answer, draft, made)
                self._counts(answer.question).drafted(len(draft), accepted)
                answer.is_sound &= made[-1].error is None  # the last token has read all cells
                answer.passes += 1
                answer.slot.length -= len(draft) - accepted
                answer.next_ids = np.array(answer.ids[-1:], np.int64)
                if not answer.is_done and answer.question.is_abandoned():
                    answer.error = Abandoned("Its caller has hung up.")

    def _draft(self, answer: Answer) -> Ids:
        """A guess at the rest of the answer; it may be empty."""
        if answer.question.canary and not answer.ids:
            rest = self._canary_answer
        elif self._drafts:
            rest = self._drafts.rest(answer.ids, response_mode=answer.question.response_mode)
        else:
            rest = []
        return np.array(rest[: answer.most - len(answer.ids) - 1], np.int64)

    def _verify(self, answer: Answer, draft: Ids, made: Sequence[Choice]) -> int:
        """Extends the answer by greedy tokens, up to the first that the draft does not have. `made` has a choice before
        each token of the draft, and one after it.

        Returns how many tokens of the draft were right. A choice that is not finite ends the answer with an error.
        """
        for accepted, choice in enumerate(made):
            answer.error = choice.error
            if answer.error:
                self._counts(answer.question).not_finite()
                return accepted
            self._extend(answer, choice)
            if answer.ended or accepted == len(draft) or choice.token != draft[accepted]:
                return accepted
        raise ValueError("there are no choices")

    def _extend(self, answer: Answer, choice: Choice) -> None:
        """Appends the most likely token to the answer."""
        answer.ids.append(choice.token)
        answer.logprobs.append(choice.logprob)
        if choice.token in self._end_ids:
            answer.ended = True
            return
        decided = self.reader.field_decided_after(answer.text)
        if decided and decided not in answer.decisions:  # a malformed answer may repeat a label: its first one counts
            first_tokens, index = self.reader.first_tokens(decided), len(answer.ids) - 1
            answer.decisions[decided] = softmax(choice.logits_of(first_tokens))
            logprobs = choice.logprobs_of(first_tokens)
            answer.alternatives += [(index, *pair) for pair in zip(first_tokens, logprobs, strict=True)]
        answer.text = self.reader.text(answer.ids)
