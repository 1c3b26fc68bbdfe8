"""Judges texts with transformers, in the same form as the exports (`judges`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from qwen3guard_contract.answer_end import end_ids
from qwen3guard_contract.errors import UnreadableAnswer
from qwen3guard_contract.labels import QUERY_CATEGORY_ORDER, RESPONSE_CATEGORY_ORDER, AnswerStatus
from qwen3guard_contract.layout import Variant
from qwen3guard_contract.manifest import GEN_OUTPUTS, STREAM_OUTPUTS
from qwen3guard_runtime.gen.answer import SAFETY, AnswerReader, Field, Probabilities
from qwen3guard_runtime.gen.guard import ANSWER_TOKENS
from qwen3guard_runtime.stream.verdicts import judge as judge_tokens
from qwen3guard_runtime.text.tokenizer import IM_END, GuardTokenizer

from qwen3guard_apps.verification.judgements import Judgements, Tokenized, gen_judged, stream_judged
from qwen3guard_apps.verification.texts import SampleText
from qwen3guard_apps.verification.transformers_guard import TransformersGuard


class TransformersJudge:
    """The checkpoint in `folder`, in float32 on the CPU. Raises ServeError where transformers is not installed."""

    def __init__(self, folder: Path, variant: Variant) -> None:
        self._guard = TransformersGuard(folder)
        self._variant = variant
        tokenizer = GuardTokenizer.load(folder)
        self._reader = AnswerReader(tokenizer) if variant == "gen" else None
        self._label = tokenizer.encode(SAFETY.label)
        self._ends = sorted(end_ids(folder, tokenizer.special[IM_END]))

    def same_tokens(self, text: SampleText, tokens: Tokenized) -> bool:
        """Whether transformers' own tokenizer and template give the same ids: of the whole conversation for Gen, of
        the part before the response for Stream."""
        if self._variant == "gen":
            return bool(self._guard.tokenize(text.messages) == tokens.ids.tolist())
        turns = text.messages if text.response is None else text.messages[:-1]
        return bool(self._guard.tokenize(turns) == tokens.ids[: tokens.response_start].tolist())

    def judge(self, tokens: Tokenized) -> Judgements:
        return self._gen(tokens, self._reader) if self._reader else self._stream(tokens)

    def _gen(self, tokens: Tokenized, reader: AnswerReader) -> Judgements:
        ids = tokens.ids.tolist()
        answer = self._guard.generate(ids, ANSWER_TOKENS, self._ends)
        ended = answer[-1] in self._ends
        written = answer[:-1] if ended else answer
        logits = self._logits([*ids, *answer], len(answer) + 1)
        decisions: dict[Field, Probabilities] = {}
        for index in range(len(answer)):
            decided = reader.field_decided_after(reader.text(answer[:index]))
            if decided:
                decisions.setdefault(decided, reader.probabilities(decided, logits[index]))
        text = reader.text(written)
        if text.startswith(SAFETY.label) and SAFETY in decisions:
            risk = decisions[SAFETY]
        else:
            risk = reader.probabilities(SAFETY, self._logits([*ids, *self._label], 1)[0])
        try:
            verdict = reader.read(text, response_mode=tokens.response_mode, decisions=decisions, ended=ended)
        except UnreadableAnswer:
            return gen_judged(risk, text, None, None, readable=False)
        categories = verdict.categories if verdict.status is AnswerStatus.COMPLETE else None
        return gen_judged(risk, text, categories, verdict.refusal, readable=True)

    def _logits(self, ids: list[int], last: int) -> Probabilities:
        return self._guard.logits(np.array(ids, np.int64), last)[GEN_OUTPUTS[0]]

    def _stream(self, tokens: Tokenized) -> Judgements:
        outputs = self._guard.logits(tokens.ids)
        risk, category, query_risk, query_category = (outputs[name] for name in STREAM_OUTPUTS)
        response = slice(tokens.response_start, None)
        prompt = slice(tokens.query_index, tokens.query_index + 1)
        return stream_judged(
            judge_tokens(query_risk[prompt], query_category[prompt], QUERY_CATEGORY_ORDER),
            judge_tokens(risk[response], category[response], RESPONSE_CATEGORY_ORDER),
        )
