"""Judges texts with an export, in this process, by the runtime's own tokenizer models, GenGuard and Sessions.

`tokenize` and `judge` raise the GuardError that a server would give for the text.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from qwen3guard_contract import wire
from qwen3guard_contract.answer_end import end_ids
from qwen3guard_contract.errors import GuardError, InternalError, UnreadableAnswer
from qwen3guard_contract.labels import AnswerStatus
from qwen3guard_contract.layout import GEN, STREAM, Variant
from qwen3guard_contract.parameters import PARAMETERS
from qwen3guard_contract.policy import Policy
from qwen3guard_runtime.engine.devices import OpenedGuard, open_guard
from qwen3guard_runtime.engine.kv_cache import KVCache
from qwen3guard_runtime.engine.logits import softmax
from qwen3guard_runtime.engine.prefixes import PrefixCache
from qwen3guard_runtime.engine.runner import Row
from qwen3guard_runtime.exported import read_manifest
from qwen3guard_runtime.gen.answer import SAFETY, AnswerReader
from qwen3guard_runtime.gen.choices import choices
from qwen3guard_runtime.gen.drafts import Drafts
from qwen3guard_runtime.gen.guard import GenGuard, Question
from qwen3guard_runtime.gen.models import GuardTokenizerModel
from qwen3guard_runtime.gen.template_prefixes import template_prefixes
from qwen3guard_runtime.parameters import Parameters
from qwen3guard_runtime.request import Outputs, Request
from qwen3guard_runtime.stream.models import StreamTokenizerModel
from qwen3guard_runtime.stream.session import SessionLimits
from qwen3guard_runtime.stream.sessions import Sessions
from qwen3guard_runtime.stream.steps import Step, StepReply
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_runtime.text.tokenizer import IM_END, GuardTokenizer
from qwen3guard_runtime.text.tokenizer_model import TokenizerModel

from qwen3guard_apps.verification.judgements import Judgements, LevelProbabilities, Tokenized, gen_judged, stream_judged
from qwen3guard_apps.verification.texts import SampleText

SESSION = "verification"


def open_judge(repository: Path, variant: Variant, *, cuda: bool) -> GenJudge | StreamJudge:
    """Loads the guard that was exported into `repository`, on the GPU with `cuda`. Raises what `open_guard` raises."""
    return GenJudge(repository, cuda=cuda) if variant == "gen" else StreamJudge(repository, cuda=cuda)


class GenJudge:
    def __init__(self, repository: Path, *, cuda: bool) -> None:
        folder = GEN.guard_folder(repository)
        tokenizer = GuardTokenizer.load(folder)
        opened = _opened(folder, wire.GEN_GUARD, AnswerReader(tokenizer).candidates, cuda=cuda)
        self._tokenizer_model = GuardTokenizerModel(GEN.tokenizer_folder(repository))
        self._runner = opened.runner
        self._label = np.array(tokenizer.encode(SAFETY.label), np.int64)
        self._guard = GenGuard(
            opened.manifest,
            opened.runner,
            tokenizer,
            end_ids(folder, tokenizer.special[IM_END]),
            slots=1,
            prefixes=template_prefixes(ChatTemplate.load(folder), opened.manifest.context),
            drafts=Drafts(tokenizer),
            memory=opened.memory,
        )

    def tokenize(self, text: SampleText) -> Tokenized:
        if text.before is not None:
            values = {wire.MESSAGES.name: json.dumps(text.messages)}
        else:
            response = {} if text.response is None else {wire.RESPONSE.name: text.response}
            values = {wire.PROMPT.name: text.prompt or ""} | response
        outputs = _tokenized(self._tokenizer_model, values)
        return Tokenized(np.asarray(outputs[wire.INPUT_IDS.name], np.int64), bool(outputs[wire.RESPONSE_MODE.name]))

    def judge(self, tokens: Tokenized) -> Judgements:
        [answer] = self._guard.answer([Question(tokens.ids, tokens.response_mode)])
        if isinstance(answer, GuardError):
            raise answer
        begins = answer.text.startswith(SAFETY.label)
        risk = answer.decisions[SAFETY] if begins and SAFETY in answer.decisions else self._levels(tokens)
        try:
            verdict = self._guard.read(answer)
        except UnreadableAnswer:
            return gen_judged(risk, answer.text, None, None, readable=False)
        categories = verdict.categories if verdict.status is AnswerStatus.COMPLETE else None
        return gen_judged(risk, answer.text, categories, verdict.refusal, readable=True)

    def _levels(self, tokens: Tokenized) -> LevelProbabilities:
        """The probabilities [3] of the levels where the answer is made to begin with "Safety:"."""
        ids = np.concatenate([tokens.ids, self._label])
        cache = self._guard.cache
        slot = cache.acquire(ids[:-1])
        try:
            cache.grow(slot, len(ids))
            rest = ids[slot.length :]
            [outputs] = self._runner.forward([Row(slot, rest, [len(rest) - 1])])
        finally:
            cache.release(slot, hold=False)
        reader = self._guard.reader
        [choice] = choices(outputs, reader.candidates)
        return softmax(choice.logits_of(reader.first_tokens(SAFETY)))


class StreamJudge:
    def __init__(self, repository: Path, *, cuda: bool) -> None:
        folder = STREAM.guard_folder(repository)
        opened = _opened(folder, wire.STREAM_GUARD, cuda=cuda)
        served = Parameters(PARAMETERS[wire.STREAM_GUARD.name])
        limits = SessionLimits(
            idle_s=math.inf,
            evict_s=0,
            turn_s=math.inf,
            chunk_tokens=served.whole("chunk_tokens"),
            alone_tokens=served.whole("alone_tokens"),
        )
        self._tokenizer_model = StreamTokenizerModel(STREAM.tokenizer_folder(repository))
        self._sessions = Sessions(
            opened.manifest,
            opened.runner,
            PrefixCache(KVCache(opened.manifest, slots=1, memory=opened.memory)),
            policy=Policy(),
            limits=limits,
            clock=time.monotonic,
        )

    def tokenize(self, text: SampleText) -> Tokenized:
        values = {wire.PROMPT.name: text.prompt or ""} if text.before is None else {wire.MESSAGES.name: text.before}
        if text.response is not None:
            values[wire.TEXT.name] = text.response
        outputs = _tokenized(self._tokenizer_model, values)
        return Tokenized(
            np.asarray(outputs[wire.INPUT_IDS.name], np.int64),
            text.response is not None,
            int(outputs[wire.QUERY_INDEX.name]),
            int(outputs[wire.RESPONSE_START.name]),
        )

    def judge(self, tokens: Tokenized) -> Judgements:
        reply = self.step(
            Step(
                SESSION,
                tokens.ids,
                0,
                start=True,
                end=True,
                query_index=tokens.query_index,
                response_start=tokens.response_start,
            )
        )
        return stream_judged(reply.prompt, reply.response)

    def step(self, step: Step) -> StepReply:
        """Runs one step. Raises the step's GuardError."""
        [reply] = self._sessions.steps([step])
        if isinstance(reply, GuardError):
            raise reply
        return reply


def _opened(folder: Path, model: wire.Model, candidates: Sequence[int] = (), *, cuda: bool) -> OpenedGuard:
    values = dict(PARAMETERS[model.name]) | {"device": "cuda" if cuda else "cpu"}
    return open_guard(folder, read_manifest(folder), Parameters(values), candidates)


def _tokenized(model: TokenizerModel, values: dict[str, str]) -> Outputs:
    """The outputs of a tokenizer model for these texts. Raises its GuardError."""
    tensors = {name: np.array([value.encode()], np.object_) for name, value in values.items()}
    [outputs] = model.handle([Request(tensors, frozenset(), sequence=SESSION, start=True, end=True)])
    if isinstance(outputs, GuardError):
        raise outputs
    if not len(outputs[wire.INPUT_IDS.name]):
        raise InternalError("The text has no tokens.")
    return outputs
